//! The file as a tree of known keys, each value with its type, its path and its `${ENV}` filled in; it knows no meaning and
//! sets no default.
//!
//! The tree is walked by hand and not derived, because a derived reader stops at the first error and we owe the user all of
//! them. [`SHAPES`] is the one list of keys: reading, hints and the check of the documentation use it.

use super::{ConfigError, ConfigErrors};
use std::collections::HashMap;
use toml::{Table, Value};

/// The largest text that is read, in bytes.
const MAX_TEXT: usize = 1024 * 1024;
/// Syntax errors told at once; what follows the first few is mostly their echo.
const MAX_SYNTAX_ERRORS: usize = 20;
/// Characters of a value that an error repeats.
const MAX_SHOWN: usize = 80;

/// The keys that one kind of table may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// What the table is called in the documentation.
    pub(super) name: &'static str,
    /// Every key it may hold.
    pub(super) keys: &'static [&'static str],
}

pub(super) const ROOT: Shape = Shape {
    name: "top level",
    keys: &[
        "unrouted",
        "listen",
        "state",
        "admin",
        "bounds",
        "deadlines",
        "wire",
        "access_log",
        "trace",
        "global",
        "groups",
        "upstreams",
        "routes",
    ],
};
pub(super) const LISTEN: Shape =
    Shape { name: "listen", keys: &["data", "admin", "workers", "tls", "proxy_protocol"] };
pub(super) const TLS: Shape =
    Shape { name: "tls", keys: &["certificate", "key", "client_ca", "client_certificate"] };
pub(super) const STATE: Shape = Shape { name: "state", keys: &["dir", "required", "save_every"] };
pub(super) const ADMIN: Shape = Shape { name: "admin", keys: &["token", "token_file", "expose"] };
pub(super) const BOUNDS: Shape = Shape {
    name: "bounds",
    keys: &[
        "connections",
        "head_bytes",
        "fields",
        "body_bytes",
        "inspect_bytes",
        "inspecting",
        "streams",
        "connection_bytes",
        "upload_rate",
        "download_rate",
        "keys",
    ],
};
pub(super) const DEADLINES: Shape = Shape {
    name: "deadlines",
    keys: &["head", "idle", "inspect", "body_idle", "connect", "answer", "tunnel", "drain"],
};
pub(super) const WIRE: Shape =
    Shape { name: "wire", keys: &["rate_limit_fields", "forwarded", "trusted", "request_id"] };
pub(super) const ACCESS_LOG: Shape =
    Shape { name: "access_log", keys: &["path", "format", "query", "field_bytes", "queue_bytes"] };
pub(super) const TRACE: Shape = Shape { name: "trace", keys: &["spans"] };
pub(super) const GLOBAL: Shape =
    Shape { name: "global", keys: &["limit", "detect", "recover", "mode", "after_crash", "keys"] };
pub(super) const GROUP: Shape = Shape {
    name: "groups",
    keys: &["name", "limit", "detect", "recover", "mode", "after_crash", "keys"],
};
pub(super) const UPSTREAM: Shape = Shape {
    name: "upstreams",
    keys: &[
        "name",
        "endpoints",
        "protocol",
        "connections",
        "queue",
        "mark_down",
        "dns_refresh",
        "ca",
        "health",
    ],
};
pub(super) const QUEUE: Shape = Shape { name: "queue", keys: &["calls", "wait"] };
pub(super) const HEALTH: Shape =
    Shape { name: "health", keys: &["path", "every", "within", "fail", "pass"] };
pub(super) const MARK_DOWN: Shape =
    Shape { name: "mark_down", keys: &["after", "hold", "at_most"] };
pub(super) const ROUTE: Shape = Shape {
    name: "routes",
    keys: &[
        "name",
        "group",
        "match",
        "upstream",
        "class",
        "slow",
        "weight",
        "settle",
        "websocket",
        "limit",
        "detect",
        "recover",
        "mode",
        "after_crash",
        "keys",
    ],
};
pub(super) const MATCH: Shape = Shape { name: "match", keys: &["host", "method", "path"] };
pub(super) const KEY: Shape = Shape {
    name: "keys",
    keys: &[
        "name",
        "from",
        "missing",
        "unreadable",
        "limit",
        "overrides",
        "newcomers",
        "detect",
        "recover",
        "mode",
        "after_crash",
    ],
};
pub(super) const FROM: Shape = Shape {
    name: "from",
    keys: &[
        "header",
        "query",
        "segment",
        "forwarded",
        "certificate",
        "claim",
        "unverified",
        "json",
        "form",
    ],
};
pub(super) const WEIGHT: Shape = Shape {
    name: "weight",
    keys: &["header", "query", "json", "form", "times", "scale", "missing"],
};
pub(super) const SETTLE: Shape =
    Shape { name: "settle", keys: &["header", "json", "events", "scale", "missing"] };
pub(super) const OVERRIDE: Shape = Shape { name: "overrides", keys: &["key", "limit"] };
pub(super) const RATE: Shape = Shape { name: "newcomers", keys: &["rate", "burst"] };
pub(super) const LIMIT: Shape = Shape {
    name: "limit",
    keys: &[
        "name",
        "rate",
        "burst",
        "window",
        "budget",
        "idle",
        "in_flight",
        "by",
        "of",
        "on_breach",
        "candidate",
    ],
};
pub(super) const DETECT: Shape = Shape {
    name: "detect",
    keys: &[
        "name",
        "on_find",
        "surge",
        "repeat",
        "errors",
        "latency",
        "silence",
        "spread",
        "streak",
        "novel",
        "ratio",
        "above",
        "active",
        "after",
        "at_least",
        "deviations",
        "faults",
        "forget",
        "growth",
        "hour_times",
        "least",
        "missed",
        "over",
        "share",
        "slow",
        "smoothing",
        "times",
    ],
};
pub(super) const RECOVER: Shape = Shape { name: "recover", keys: &["probes", "after", "at_most"] };

/// Every kind of table there is.
#[cfg(test)]
pub(super) const SHAPES: &[Shape] = &[
    ROOT, LISTEN, TLS, STATE, ADMIN, BOUNDS, DEADLINES, WIRE, ACCESS_LOG, TRACE, GLOBAL, GROUP,
    UPSTREAM, QUEUE, HEALTH, MARK_DOWN, ROUTE, MATCH, KEY, FROM, WEIGHT, SETTLE, OVERRIDE, RATE,
    LIMIT, DETECT, RECOVER,
];

/// Collects every error of one reading, and knows the environment.
pub(super) struct Report<'e> {
    pub(super) errors: Vec<ConfigError>,
    env: &'e dyn Fn(&str) -> Option<String>,
}

impl<'e> Report<'e> {
    pub(super) fn new(env: &'e dyn Fn(&str) -> Option<String>) -> Report<'e> {
        Report { errors: Vec::new(), env }
    }

    /// Notes an error.
    pub(super) fn wrong(
        &mut self,
        path: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.errors.push(ConfigError {
            path: path.into(),
            problem: problem.into(),
            hint: hint.into(),
        });
    }

    fn wrong_type(&mut self, path: String, found: &Value, needed: &str, hint: &str) {
        // The value itself is not repeated: it may be a token.
        self.wrong(path, format!("is {}, but {needed} is needed", type_of(found)), hint);
    }
}

/// A string with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) path: String,
    /// With every `${ENV}` filled in.
    pub(super) value: String,
    /// As it stands in the file, in quotes and cut short: what errors repeat, so that they never print a secret that came
    /// from the environment.
    pub(super) shown: String,
}

/// A value that may be a word or a table.
pub(super) enum WordOrTable {
    Word(Text),
    Table(Section),
}

/// One table of the file. Values are taken out of it; what it may hold was checked when it was made.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) path: String,
    shape: Shape,
    table: Table,
}

/// Reads `text` as TOML. `source` is the name that syntax errors carry.
pub(super) fn parse(
    text: &str,
    source: &str,
    report: &mut Report<'_>,
) -> Result<Section, ConfigErrors> {
    let one = |path: String, problem: String, hint: &str| {
        ConfigErrors(vec![ConfigError { path, problem, hint: hint.to_owned() }])
    };
    let source = printable(source);
    if text.len() > MAX_TEXT {
        let problem =
            format!("is {} bytes long; a configuration has at most {MAX_TEXT}", text.len());
        return Err(one(source, problem, "split the routes over several breakers"));
    }
    let located = |error: &toml::de::Error| {
        let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
        ConfigError {
            path: format!("{source}:{line}:{column}"),
            // Only the message: the full text repeats the line, which may hold a token.
            problem: printable(error.message()),
            hint: "this is not TOML, so nothing else was checked".to_owned(),
        }
    };
    let (_, mut broken) = toml::de::DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        broken.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        return Err(ConfigErrors(broken.iter().take(MAX_SYNTAX_ERRORS).map(located).collect()));
    }
    let table = text.parse::<Table>().map_err(|error| ConfigErrors(vec![located(&error)]))?;
    Ok(Section::new(table, String::new(), ROOT, report))
}

impl Section {
    fn new(table: Table, path: String, shape: Shape, report: &mut Report<'_>) -> Section {
        let section = Section { path, shape, table };
        for key in section.table.keys() {
            if !shape.keys.contains(&key.as_str()) {
                report.wrong(
                    section.path_of(&printable(key)),
                    "is not a key here",
                    nearest_hint(key, shape.keys),
                );
            }
        }
        section
    }

    /// The path of one of its keys.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the key is there and not taken yet, valid or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn take(&mut self, key: &str) -> Option<(String, Value)> {
        debug_assert!(self.shape.keys.contains(&key), "{key} is missing in {:?}", self.shape);
        let value = self.table.remove(key)?;
        Some((self.path_of(key), value))
    }

    /// A string. `None`: absent, or wrong and reported.
    pub(super) fn text(&mut self, key: &str, report: &mut Report<'_>) -> Option<Text> {
        let (path, value) = self.take(key)?;
        text_of(path, value, report)
    }

    /// A string, where a number without unit would be the likely slip.
    pub(super) fn quantity(
        &mut self,
        key: &str,
        example: &str,
        report: &mut Report<'_>,
    ) -> Option<Text> {
        let (path, value) = self.take(key)?;
        if matches!(value, Value::Integer(_) | Value::Float(_)) {
            report.wrong(
                path,
                format!("is {} without a unit", type_of(&value)),
                format!("write the unit into the value, as in {example:?}"),
            );
            return None;
        }
        text_of(path, value, report)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        let (path, value) = self.take(key)?;
        if let Value::Boolean(flag) = value {
            return Some(flag);
        }
        report.wrong_type(path, &value, "true or false", "write it without quotes");
        None
    }

    /// A number, with or without a fraction.
    pub(super) fn number(&mut self, key: &str, report: &mut Report<'_>) -> Option<f64> {
        let (path, value) = self.take(key)?;
        match value {
            Value::Float(number) => Some(number),
            // More digits than a float keeps are more than anything here is counted by.
            Value::Integer(number) => i32::try_from(number).map(f64::from).ok().or_else(|| {
                report.wrong(path, format!("{number} is too much"), "use a smaller number");
                None
            }),
            other => {
                report.wrong_type(path, &other, "a number", "write it without quotes");
                None
            }
        }
    }

    /// Whether a whole number stands there.
    pub(super) fn is_whole(&self, key: &str) -> bool {
        matches!(self.table.get(key), Some(Value::Integer(_)))
    }

    /// The known keys that were not taken.
    pub(super) fn left(&self) -> Vec<String> {
        let known = |key: &&String| self.shape.keys.contains(&key.as_str());
        self.table.keys().filter(known).cloned().collect()
    }

    /// A whole number within bounds, both of them allowed.
    pub(super) fn whole(
        &mut self,
        key: &str,
        least: u64,
        most: u64,
        report: &mut Report<'_>,
    ) -> Option<u64> {
        let (path, value) = self.take(key)?;
        let Value::Integer(number) = value else {
            report.wrong_type(path, &value, "a whole number", "write it without quotes");
            return None;
        };
        if let Ok(number) = u64::try_from(number)
            && (least..=most).contains(&number)
        {
            return Some(number);
        }
        let problem = if number < 0 || u64::try_from(number).is_ok_and(|number| number < least) {
            format!("{number} is too few")
        } else {
            format!("{number} is too many")
        };
        report.wrong(path, problem, format!("use a number from {least} to {most}"));
        None
    }

    /// One string or a list of strings. `None`: absent, or wrong as a whole and reported.
    pub(super) fn texts(&mut self, key: &str, report: &mut Report<'_>) -> Option<Vec<Text>> {
        let (path, value) = self.take(key)?;
        match value {
            Value::Array(values) => {
                let texts = values.into_iter().enumerate().filter_map(|(index, value)| {
                    text_of(format!("{path}[{index}]"), value, report)
                });
                Some(texts.collect())
            }
            other => text_of(path, other, report).map(|text| vec![text]),
        }
    }

    /// A table. `None`: absent, or wrong and reported.
    pub(super) fn section(
        &mut self,
        key: &str,
        shape: Shape,
        report: &mut Report<'_>,
    ) -> Option<Section> {
        let (path, value) = self.take(key)?;
        match value {
            Value::Table(table) => Some(Section::new(table, path, shape, report)),
            other => {
                let hint = format!("write [{key}] or {key} = {{ … }}");
                report.wrong_type(path, &other, "a table", &hint);
                None
            }
        }
    }

    /// A word or a table.
    pub(super) fn word_or_section(
        &mut self,
        key: &str,
        shape: Shape,
        report: &mut Report<'_>,
    ) -> Option<WordOrTable> {
        let (path, value) = self.take(key)?;
        match value {
            Value::Table(table) => {
                Some(WordOrTable::Table(Section::new(table, path, shape, report)))
            }
            Value::String(_) => text_of(path, value, report).map(WordOrTable::Word),
            other => {
                let hint = format!("in the table, the keys are: {}", shape.keys.join(", "));
                report.wrong_type(path, &other, "a word or a table", &hint);
                None
            }
        }
    }

    /// A list of at most `most` tables. Their paths carry their names where these are valid and tell them apart, else their
    /// places.
    pub(super) fn sections(
        &mut self,
        key: &str,
        shape: Shape,
        most: usize,
        report: &mut Report<'_>,
    ) -> Vec<Section> {
        let Some((path, value)) = self.take(key) else {
            return Vec::new();
        };
        let hint = if shape == LIMIT || shape == DETECT {
            format!("write {key} = [{{ … }}]")
        } else if shape == OVERRIDE {
            format!("write [[{}]] with two brackets", key_path(&self.path, "keys.overrides"))
        } else {
            format!("write [[{}]] with two brackets", key_path(&self.path, key))
        };
        let Value::Array(mut values) = value else {
            report.wrong_type(path, &value, "a list of tables", &hint);
            return Vec::new();
        };
        if values.len() > most {
            let problem = format!("{} of them are too many", values.len());
            report.wrong(&path, problem, format!("use at most {most}"));
            // What is checked below grows with the square of some of these lists.
            values.truncate(most);
        }
        let names: Vec<Option<String>> =
            values.iter().map(|value| label_of(value, report.env)).collect();
        let mut times: HashMap<&str, u32> = HashMap::new();
        for name in names.iter().flatten() {
            *times.entry(name).or_default() += 1;
        }
        let mut sections = Vec::with_capacity(values.len());
        for ((index, value), name) in values.into_iter().enumerate().zip(&names) {
            let name = name.as_deref().filter(|name| times.get(name) == Some(&1));
            let path = match name {
                Some(name) => format!("{path}.{name}"),
                None => format!("{path}[{index}]"),
            };
            match value {
                Value::Table(table) => sections.push(Section::new(table, path, shape, report)),
                other => report.wrong_type(path, &other, "a table", &hint),
            }
        }
        sections
    }
}

/// Whether `name` may stand in the path of a scope.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    // `.` and `..` would be eaten on their way through a URL.
    (1..=64).contains(&name.len()) && name.bytes().all(plain) && name != "." && name != ".."
}

/// A hint at the nearest of `known`, or at all of them.
pub(super) fn nearest_hint(found: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(found, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((_, known)) => format!("did you mean {known:?}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// `text` in quotes, cut short.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// How a table is opened in the file: without the names that our own paths carry.
fn key_path(path: &str, key: &str) -> String {
    match path.split(['.', '[']).next() {
        Some(first) if !first.is_empty() => format!("{first}.{key}"),
        _ => key.to_owned(),
    }
}

/// One line, whatever stands in the file.
pub(super) fn printable(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars().take(MAX_SHOWN * 2) {
        if character == ' ' || character.is_ascii_graphic() {
            line.push(character);
        } else {
            line.extend(character.escape_debug());
        }
    }
    line
}

fn label_of(value: &Value, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let written = value.as_table()?.get("name")?.as_str()?;
    filled(written, env).ok().filter(|name| is_name(name))
}

fn text_of(path: String, value: Value, report: &mut Report<'_>) -> Option<Text> {
    let Value::String(written) = value else {
        report.wrong_type(path, &value, "a string", "put it in quotes");
        return None;
    };
    match filled(&written, report.env) {
        Ok(value) => Some(Text { path, shown: quoted(&written), value }),
        Err((problem, hint)) => {
            report.wrong(path, problem, hint);
            None
        }
    }
}

/// Fills in every `${NAME}`; `$${` stands for `${`. What is filled in is not looked at again.
fn filled(
    written: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, (String, &'static str)> {
    let literal_hint = "write $${ where ${ is meant as it stands";
    let mut out = String::with_capacity(written.len());
    let mut rest = written;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let after = from.get(2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(("has a ${ without a }".to_owned(), literal_hint));
        };
        let valid = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !valid {
            let problem = format!("{} is no name of a variable", quoted(name));
            return Err((problem, literal_hint));
        }
        match env(name) {
            Some(value) if !value.is_empty() => out.push_str(&value),
            Some(_) => {
                return Err((
                    format!("the environment variable {name} is empty"),
                    "give it a value",
                ));
            }
            None => {
                return Err((format!("the environment variable {name} is not set"), "set it"));
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Line and column of a byte, both counted from one; columns are characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count().saturating_add(1);
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    (line, column.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::{Report, filled, line_and_column, nearest_hint, parse};

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("10.0.0.7".to_owned()),
            "NOTHING" => Some(String::new()),
            "ODD" => Some("${HOST}".to_owned()),
            _ => None,
        }
    }

    /// Goal: variables are filled in once, and a dollar can still be written.
    #[test]
    fn variables_are_filled_in() {
        for (written, value) in [
            ("", ""),
            ("plain $ and $$ and {x}", "plain $ and $$ and {x}"),
            ("http://${HOST}:80", "http://10.0.0.7:80"),
            ("${HOST}${HOST}", "10.0.0.710.0.0.7"),
            ("$${HOST}", "${HOST}"),
            ("a$${b}${HOST}", "a${b}10.0.0.7"),
            ("${ODD}", "${HOST}"),
        ] {
            assert_eq!(filled(written, &env).as_deref(), Ok(value), "{written}");
        }
    }

    /// Goal: a variable that cannot be filled in is named.
    #[test]
    fn variables_that_cannot_be_filled_in_are_named() {
        for (written, problem) in [
            ("${MISSING}", "the environment variable MISSING is not set"),
            ("${NOTHING}", "the environment variable NOTHING is empty"),
            ("${", "has a ${ without a }"),
            ("${HOST", "has a ${ without a }"),
            ("${}", "\"\" is no name of a variable"),
            ("${1A}", "\"1A\" is no name of a variable"),
            ("${A B}", "\"A B\" is no name of a variable"),
        ] {
            let found = filled(written, &env).map_err(|(problem, _)| problem);
            assert_eq!(found, Err(problem.to_owned()), "{written}");
        }
    }

    /// Goal: a slip of the finger is answered with the key that was meant, a stranger with all keys.
    #[test]
    fn hints_name_the_nearest_key() {
        assert_eq!(nearest_hint("widnow", &["rate", "window"]), "did you mean \"window\"?");
        assert_eq!(nearest_hint("colour", &["rate", "window"]), "known here: rate, window");
    }

    /// Goal: lines and columns are those an editor shows.
    #[test]
    fn lines_and_columns_are_those_of_an_editor() {
        assert_eq!(line_and_column("", 0), (1, 1));
        assert_eq!(line_and_column("a\nbc", 3), (2, 2));
        assert_eq!(line_and_column("é\né!", 5), (2, 2));
        assert_eq!(line_and_column("a", 99), (1, 2));
    }

    /// Goal: text that is not TOML names file, line and column, tells several slips at once, and repeats no line, which may
    /// hold a token.
    #[test]
    fn text_that_is_not_toml_names_file_line_and_column() {
        let mut report = Report::new(&env);
        let text = "[listen]\ndata = \n[admin]\ntoken = \"correct-horse-battery\" oops\n";
        let errors = parse(text, "breaker.toml", &mut report).unwrap_err();
        assert!(errors.0.len() >= 2, "{errors}");
        let lines = errors.to_string();
        assert!(lines.starts_with("breaker.toml:2:"), "{lines}");
        assert!(lines.contains("\nbreaker.toml:4:"), "{lines}");
        assert!(!lines.contains("horse"), "{lines}");
        assert_eq!(lines.lines().count(), errors.0.len());
    }

    /// Goal: a key that is given twice is an error of the file, not a silent choice.
    #[test]
    fn a_key_given_twice_is_an_error() {
        let mut report = Report::new(&env);
        let errors = parse("[listen]\ndata = \"a\"\ndata = \"b\"\n", "x.toml", &mut report);
        assert!(errors.unwrap_err().to_string().starts_with("x.toml:3:"));
    }
}
