//! What is tried with curl, over HTTP/1.1 and HTTP/2: downloads, uploads, ranges, what a proxy says by itself.

use super::{Bench, Door, Ledger};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

/// Which version curl is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

/// One transfer as curl tells of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Transfer {
    status: u16,
    version: String,
    /// Connections it had to make.
    connects: u32,
    /// Seconds to the first byte, and in all.
    first: f64,
    whole: f64,
}

/// What a run of curl came to.
#[derive(Debug, Default)]
struct Said {
    transfers: Vec<Transfer>,
    /// The heads that came down, and the last body.
    heads: String,
    body: Vec<u8>,
}

impl Said {
    /// The one transfer, if it has this status.
    fn with(&self, status: u16) -> Result<&Transfer, String> {
        match self.transfers.as_slice() {
            [one] if one.status == status => Ok(one),
            others => Err(format!(
                "{status} was wanted: {others:?}, {}",
                String::from_utf8_lossy(&self.body)
            )),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.heads.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What curl is told to say of each transfer.
const TELL: &str =
    "%{stdout}%{http_code} %{http_version} %{num_connects} %{time_starttransfer} %{time_total}\n";

fn transfers(text: &str) -> Option<Vec<Transfer>> {
    let transfer = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Transfer {
            status: words.next()?.parse().ok()?,
            version: words.next()?.to_owned(),
            connects: words.next()?.parse().ok()?,
            first: words.next()?.parse().ok()?,
            whole: words.next()?.parse().ok()?,
        })
    };
    text.lines().map(transfer).collect()
}

/// One try: the bench, the door, and the version.
struct Try<'a> {
    bench: &'a Bench,
    door: &'a Door,
    speaks: Speaks,
}

type Outcome = Result<String, String>;

type Check<'a> = fn(&Try<'a>) -> Outcome;

/// Tries everything there is.
pub(super) fn check<'a>(bench: &'a Bench, door: &'a Door, ledger: &mut Ledger) {
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let version = if speaks == Speaks::Http1 { "HTTP/1.1" } else { "HTTP/2" };
        let with = Try { bench, door, speaks };
        let checks: [(&str, Check<'a>); 16] = [
            ("download", Try::download),
            ("HEAD", Try::head),
            ("range", Try::range),
            ("upload", Try::upload),
            ("upload of unknown length", Try::stream),
            ("upload that is kept", Try::kept),
            ("fields", Try::fields),
            ("one connection", Try::again),
            ("at once", Try::at_once),
            ("chunked answer", Try::chunked),
            ("compressed answer", Try::packed),
            ("answer that ends with its connection", Try::parting),
            ("event stream", Try::events),
            ("refusals", Try::refusals),
            ("limit", Try::limit),
            ("kill", Try::kill),
        ];
        let name = format!("curl Expect, {version}, {}", door.name);
        match with.expect() {
            Ok(false) => ledger.lacks(
                &name,
                "no 100 comes over HTTP/2; curl sent its body after a second all the same",
            ),
            other => {
                ledger.note(&name, other.map(|_| "leave was given, and the body came".to_owned()))
            }
        }
        for (name, check) in checks {
            ledger.note(&format!("curl {name}, {version}, {}", door.name), check(&with));
        }
    }
    let old = Try { bench, door, speaks: Speaks::Http1 };
    ledger.note(&format!("curl HTTP/1.0, {}", door.name), old.old());
}

impl Try<'_> {
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.door.base)
    }

    /// Runs curl; every argument is given, the last ones are URLs.
    fn curl(&self, args: &[&str]) -> Result<Said, String> {
        let (body, heads) = (self.bench.file("body"), self.bench.file("heads"));
        for file in [&body, &heads] {
            fs::write(file, "").map_err(|error| error.to_string())?;
        }
        let mut command = Command::new("curl");
        command.args([
            "-q",
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--noproxy",
            "*",
            "--write-out",
            TELL,
        ]);
        command.arg("--output").arg(&body).arg("--dump-header").arg(&heads);
        command.arg(match (self.speaks, &self.door.trusted) {
            (Speaks::Http1, _) => "--http1.1",
            (Speaks::Http2, None) => "--http2-prior-knowledge",
            (Speaks::Http2, Some(_)) => "--http2",
        });
        if let Some(trusted) = &self.door.trusted {
            command.args(["--cacert", trusted]);
        }
        let output = command.args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("curl ended with {}: {} {text}", output.status, why.trim()));
        }
        let transfers = transfers(&text).ok_or_else(|| format!("curl's words: {text}"))?;
        let version = if self.speaks == Speaks::Http1 { "1.1" } else { "2" };
        if let Some(other) = transfers.iter().find(|transfer| transfer.version != version) {
            return Err(format!("spoke HTTP/{}", other.version));
        }
        let heads = fs::read(&heads).map_err(|error| error.to_string())?;
        let body = fs::read(&body).map_err(|error| error.to_string())?;
        Ok(Said { transfers, heads: String::from_utf8_lossy(&heads).into_owned(), body })
    }

    fn download(&self) -> Outcome {
        let said = self.curl(&[&self.url("/files/big")])?;
        said.with(200)?;
        same(&said.body, &self.bench.big)
    }

    fn head(&self) -> Outcome {
        let said = self.curl(&["--head", &self.url("/files/big")])?;
        said.with(200)?;
        let told = said.field("content-length").map(str::to_owned);
        if told == Some(self.bench.big.len().to_string()) {
            Ok("the length was told, and no body came".to_owned())
        } else {
            Err(format!("content-length {told:?}"))
        }
    }

    fn range(&self) -> Outcome {
        let said = self.curl(&["--range", "1000-500999", &self.url("/files/big")])?;
        said.with(206)?;
        let told = format!("bytes 1000-500999/{}", self.bench.big.len());
        if said.field("content-range") != Some(&told) {
            return Err(said.heads);
        }
        same(&said.body, self.bench.big.get(1000..501_000).unwrap_or_default())
    }

    /// Sends the upload by `args` and compares what Python says it was given.
    fn echoed(&self, args: &[&str]) -> Result<Said, String> {
        let said = self.curl(args)?;
        said.with(200)?;
        let upload = fs::read(self.bench.file("upload")).map_err(|error| error.to_string())?;
        let echo = echo(&said.body)?;
        let (length, sum) = (upload.len(), hex(&Sha256::digest(&upload)));
        if echo.pointer("/length") == Some(&length.into())
            && echo.pointer("/sha256") == Some(&sum.into())
        {
            Ok(said)
        } else {
            Err(format!("what arrived is something else: {echo}"))
        }
    }

    fn upload(&self) -> Outcome {
        let file = self.bench.file("upload").display().to_string();
        self.echoed(&["--upload-file", &file, &self.url("/python/echo")])?;
        Ok("8 MiB arrived as they were sent".to_owned())
    }

    fn stream(&self) -> Outcome {
        let file = self.bench.file("upload").display().to_string();
        let args = [
            "--header",
            "Content-Length:",
            "--header",
            "Transfer-Encoding: chunked",
            "--upload-file",
            &file,
        ];
        let said = match self.speaks {
            Speaks::Http1 => self.echoed(&[&args[..], &[&self.url("/python/echo")]].concat())?,
            Speaks::Http2 => {
                self.echoed(&[&args[..2], &args[4..], &[&self.url("/python/echo")]].concat())?
            }
        };
        let fields = member(&echo(&said.body)?, "fields");
        match (self.speaks, fields.contains("\"transfer-encoding\",\"chunked\"")) {
            (_, true) => Ok("8 MiB arrived, in chunks".to_owned()),
            (Speaks::Http1, false) => Err(format!("not in chunks: {fields}")),
            (Speaks::Http2, false) => Ok("8 MiB arrived".to_owned()),
        }
    }

    fn kept(&self) -> Outcome {
        let file = self.bench.file("upload").display().to_string();
        let name = format!("/files/kept-{:?}-{}", self.speaks, self.door.trusted.is_some());
        self.curl(&["--upload-file", &file, &self.url(&name)])?.with(201)?;
        let said = self.curl(&[&self.url(&name)])?;
        said.with(200)?;
        let upload = fs::read(&file).map_err(|error| error.to_string())?;
        same(&said.body, &upload).map(|seen| format!("nginx stored it; {seen}"))
    }

    /// Whether leave to send was given; the body arrives in every case.
    fn expect(&self) -> Result<bool, String> {
        let file = format!("@{}", self.bench.file("upload").display());
        let args = [
            "--header",
            "Expect: 100-continue",
            "--expect100-timeout",
            "1",
            "--data-binary",
            &file,
        ];
        let said = self.echoed(&[&args[..], &[&self.url("/python/echo")]].concat())?;
        let leave =
            said.heads.lines().any(|line| line.starts_with("HTTP/") && line.contains(" 100"));
        match (self.speaks, leave) {
            (Speaks::Http1, false) => Err(format!("no 100 came: {}", said.heads)),
            (_, leave) => Ok(leave),
        }
    }

    fn fields(&self) -> Outcome {
        let said = self.curl(&[
            "--header",
            "X-Forwarded-For: 6.6.6.6",
            "--header",
            "X-Two: 1",
            "--header",
            "X-Two: 2",
            "--cookie",
            "a=b; c=d",
            "--user",
            "me:secret",
            &self.url("/python/echo?q=%2F&r"),
        ])?;
        said.with(200)?;
        let echo = echo(&said.body)?;
        let fields = member(&echo, "fields");
        let all = [
            "[\"x-forwarded-for\",\"127.0.0.1\"]",
            "[\"x-two\",\"1\"]",
            "[\"x-two\",\"2\"]",
            "[\"cookie\",\"a=b; c=d\"]",
            "[\"authorization\",\"Basic bWU6c2VjcmV0\"]",
        ];
        let lost = all.iter().find(|field| !fields.contains(**field));
        match lost {
            None if !fields.contains("6.6.6.6")
                && member(&echo, "path") == "\"/python/echo?q=%2F&r\"" =>
            {
                Ok("query, cookies, doubled and secret fields passed, a made-up address did not"
                    .to_owned())
            }
            _ => Err(format!("{lost:?} in {echo}")),
        }
    }

    /// Whether curl can use its connection again: 7.88 cannot do so with HTTP/2 in clear, whoever serves it (control: nginx).
    fn reuses(&self) -> bool {
        self.speaks == Speaks::Http1 || self.door.trusted.is_some()
    }

    /// Several requests over one HTTP/2 connection in clear, by nghttp.
    fn nghttp(&self, path: &str, times: usize) -> Outcome {
        // It asks for equal URLs once.
        let urls = (0..times).map(|number| self.url(&format!("{path}?{number}")));
        let output =
            Command::new("nghttp").args(["-n", "-s"]).args(urls).stdin(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let good = answered(&text);
        if good == times {
            Ok(format!("{times} over one connection, by nghttp"))
        } else {
            Err(format!("{good} of {times}: {text}"))
        }
    }

    fn again(&self) -> Outcome {
        if !self.reuses() {
            return self.nghttp("/python/echo", 3);
        }
        let url = self.url("/python/echo");
        let said =
            self.curl(&[&*url, "--output", "/dev/null", &url, "--output", "/dev/null", &url])?;
        let connects: Vec<u32> = said.transfers.iter().map(|transfer| transfer.connects).collect();
        if connects == [1, 0, 0] && said.transfers.iter().all(|transfer| transfer.status == 200) {
            Ok("three requests shared one".to_owned())
        } else {
            Err(format!("{:?}", said.transfers))
        }
    }

    fn at_once(&self) -> Outcome {
        if !self.reuses() {
            return self.nghttp("/files/big", 20);
        }
        let mut args = vec!["--parallel", "--parallel-max", "20"];
        let url = self.url("/files/big");
        for _ in 0..20 {
            args.extend(["--output", "/dev/null", &url]);
        }
        // The first URL takes the file of all runs.
        let said = self.curl(&args)?;
        let good = said.transfers.iter().filter(|transfer| transfer.status == 200).count();
        let connects: u32 = said.transfers.iter().map(|transfer| transfer.connects).sum();
        if good == 20 {
            Ok(format!("20 downloads over {connects} connections"))
        } else {
            Err(format!("{good} of 20"))
        }
    }

    fn pieces(&self, args: &[&str]) -> Outcome {
        let said = self.curl(args)?;
        said.with(200)?;
        let mut all = String::new();
        for number in 0..1000 {
            // Writing to a `String` cannot fail.
            let _ = writeln!(all, "piece {number}");
        }
        same(&said.body, all.as_bytes())
    }

    fn chunked(&self) -> Outcome {
        self.pieces(&[&self.url("/python/chunked")])
    }

    fn packed(&self) -> Outcome {
        self.pieces(&["--compressed", &self.url("/python/packed")])
    }

    fn parting(&self) -> Outcome {
        self.pieces(&[&self.url("/python/parting")])
    }

    fn events(&self) -> Outcome {
        let said = self.curl(&["--no-buffer", &self.url("/python/events")])?;
        let one = said.with(200)?;
        // Five events with 0.2 s between them: the first must not wait for the last.
        let all = said.body.starts_with(b"data: 0") && said.body.ends_with(b"data: 4\n\n");
        if all && one.whole - one.first > 0.5 {
            Ok(format!("the first came {:.1} s before the last", one.whole - one.first))
        } else {
            Err(format!("{one:?}: {}", String::from_utf8_lossy(&said.body)))
        }
    }

    fn refusals(&self) -> Outcome {
        let cases: [(&[&str], &str, u16); 4] = [
            (&[], "/nowhere", 404),
            (&["--path-as-is"], "/files/../nowhere", 400),
            (&[], "/files/a%2Fb", 400),
            (&["--request", "TRACE"], "/files/big", 400),
        ];
        for (args, path, status) in cases {
            let said = self.curl(&[args, &[&self.url(path)]].concat())?;
            let got = said.with(status).map_err(|why| format!("{path}: {why}"));
            // Which status a method that is never forwarded gets is the proxy's own affair, as long as it refuses.
            let refused =
                said.transfers.first().is_some_and(|one| (400..502).contains(&one.status));
            if got.is_err() && !(args.contains(&"TRACE") && refused) {
                return got.map(|_| String::new());
            }
            if said.field("content-type") != Some("application/problem+json") {
                return Err(format!("{path}: no problem document: {}", said.heads));
            }
        }
        Ok("no route, a dot segment, an encoded slash and TRACE: each a problem document"
            .to_owned())
    }

    fn limit(&self) -> Outcome {
        let url = self.url("/limited/a");
        let mut last = None;
        for _ in 0..2 {
            last = Some(self.curl(&[&url])?);
        }
        let said = last.ok_or("curl was not run")?;
        said.with(429)?;
        let told = said.field("retry-after").ok_or("no retry-after")?.to_owned();
        if !self.reuses() {
            return Ok(format!("429 with retry-after {told}"));
        }
        // curl itself heeds Retry-After.
        let args = ["--retry", "5", &url];
        let said = self.curl(&args)?;
        match said.transfers.last() {
            Some(end) if end.status == 200 => {
                Ok(format!("429 with retry-after {told}; curl --retry waited and got 200"))
            }
            other => Err(format!("after retries: {other:?}")),
        }
    }

    fn kill(&self) -> Outcome {
        let admin = &self.door.proxy.admin;
        let url = self.url("/killed/a");
        let words = |error: crate::error::LoadError| error.to_string();
        self.curl(&[&url])?.with(200)?;
        admin
            .kill("/default/killed", "halt")
            .and_then(crate::admin::Answer::good)
            .map_err(words)?;
        let killed = self.curl(&[&url]);
        let elsewhere = self.curl(&[&self.url("/files/big")]);
        admin.lift("/default/killed").and_then(crate::admin::Answer::good).map_err(words)?;
        let killed = killed?;
        killed.with(503)?;
        elsewhere?.with(200)?;
        self.curl(&[&url])?.with(200)?;
        let body = String::from_utf8_lossy(&killed.body).into_owned();
        if body.contains("killed") {
            Ok("503, elsewhere 200; 200 after the lift".to_owned())
        } else {
            Err(body)
        }
    }

    fn old(&self) -> Outcome {
        let said = self.curl(&["--http1.0", &self.url("/files/big")]);
        match said {
            // The check of the version speaks of the answer's.
            Ok(said) => {
                said.with(200)?;
                same(&said.body, &self.bench.big)
            }
            Err(why) => Err(why),
        }
    }
}

/// How many lines of nghttp's statistics end in a status of 200 and a path.
fn answered(text: &str) -> usize {
    let is_good = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words.as_slice(), [_, _, _, _, "200", _, path] if path.starts_with('/'))
    };
    text.lines().filter(is_good).count()
}

fn same(came: &[u8], wanted: &[u8]) -> Outcome {
    if came == wanted {
        Ok(format!("{} bytes, the same", came.len()))
    } else {
        Err(format!("{} bytes came, {} were wanted, and they differ", came.len(), wanted.len()))
    }
}

fn echo(body: &[u8]) -> Result<serde_json::Value, String> {
    serde_json::from_slice(body)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(body)))
}

/// A member as JSON; nothing where it is missing.
fn member(value: &serde_json::Value, name: &str) -> String {
    value.get(name).map(ToString::to_string).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what curl tells is read transfer by transfer, and words that are no transfer are not passed over.
    #[test]
    fn curl_is_read() {
        let read = transfers("200 2 1 0.010 0.250\n503 1.1 0 0.1 0.1\n").unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[0],
            Transfer {
                status: 200,
                version: "2".to_owned(),
                connects: 1,
                first: 0.01,
                whole: 0.25
            }
        );
        assert_eq!((read[1].status, read[1].connects), (503, 0));
        assert_eq!(transfers("200 2 1 0.010\n"), None);
        assert_eq!(transfers("curl: (7)\n"), None);
    }

    /// Goal: of nghttp's statistics the lines of good answers count, and no others.
    #[test]
    fn nghttp_is_read() {
        let text = "id  responseEnd requestStart  process code size request path\n \
                    13      +321us       +102us    218us  200    3 /\n 15      +324us       +104us    220us  503    3 /a\n";
        assert_eq!(answered(text), 1);
    }

    /// Goal: a status that was not wanted, or more transfers than one, is no success; fields are found in any case.
    #[test]
    fn one_transfer_is_one() {
        let one = Transfer { status: 200, ..Transfer::default() };
        let said = Said {
            transfers: vec![one.clone()],
            heads: "HTTP/1.1 200 OK\r\nRetry-After: 3\r\n\r\n".to_owned(),
            body: Vec::new(),
        };
        assert!(said.with(200).is_ok() && said.with(206).is_err());
        assert_eq!((said.field("retry-after"), said.field("retry")), (Some("3"), None));
        assert!(Said { transfers: vec![one.clone(), one], ..said }.with(200).is_err());
        assert!(same(b"a", b"a").is_ok() && same(b"a", b"b").is_err());
        assert_eq!(hex(&[0, 255]), "00ff");
    }
}
