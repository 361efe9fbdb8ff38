//! The head of an upstream's answer: the same however it arrives, of one framing, without a field of the upstream's connection; and
//! what is written of it for the client, from either form of its fields, is read once more and says the same.
#![no_main]

use breaker_proxy::wire::answer::{Form, Framing, Head, Passing, Seen, take};
use breaker_proxy::wire::response::{self, After, Coding, Ours};
use bytes::BytesMut;
use hyper::StatusCode;
use hyper::header::CONTENT_LENGTH;
use libfuzzer_sys::fuzz_target;

/// Fields of a head that are read, at most.
const FIELDS: usize = 128;

type Field = (String, Vec<u8>);

/// The head, and what is left behind it; `None` if it did not come.
fn read(pieces: &[&[u8]], to_head: bool, form: Form<'_>) -> Result<Option<(Head, Vec<u8>)>, ()> {
    let (mut input, mut seen, mut found) = (BytesMut::new(), Seen::default(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        if found.is_none() {
            found = take(&mut input, to_head, &mut seen, form).map_err(|_| ())?;
        }
    }
    Ok(found.map(|head| (head, input.to_vec())))
}

/// What a head says, but for its fields.
fn summary(head: &Head) -> (StatusCode, Option<u64>, Framing, bool, bool) {
    (head.status, head.told, head.framing, head.lasts, head.is_websocket)
}

/// The fields of a head in a map, but for those that are ours.
fn fields(head: &Head) -> Vec<Field> {
    let Passing::Map(map) = &head.fields else { panic!("a map was asked for") };
    let others = map.iter().filter(|(name, _)| *name != "date" && *name != CONTENT_LENGTH);
    let mut list: Vec<Field> = others
        .map(|(name, value)| (name.to_string(), value.as_bytes().trim_ascii().to_vec()))
        .collect();
    list.sort();
    list
}

/// What a client is sent.
fn sent(head: Head, ours: &Ours<'_>) -> Vec<u8> {
    match head.fields {
        Passing::Map(map) => {
            let mut out = Vec::new();
            response::begin(&mut out, head.status);
            let all = map.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let dated = response::fields(&mut out, all);
            response::end(&mut out, ours, dated);
            out
        }
        Passing::Lines { mut text, dated } => {
            response::end(&mut text, ours, dated);
            text
        }
    }
}

fn check(head: &Head) {
    let Passing::Map(map) = &head.fields else { panic!("a map was asked for") };
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ] {
        assert!(!map.contains_key(name), "{name} passed");
    }
    assert!(map.get_all(CONTENT_LENGTH).iter().count() <= 1);
    match head.framing {
        Framing::Length(length) => assert_eq!(head.told, Some(length)),
        Framing::Chunked(_) => assert_eq!(head.told, None),
        Framing::Close => assert!(head.told.is_none() && !head.lasts),
        Framing::None => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let to_head = choice % 2 == 1;
    let room = || Vec::with_capacity(16);
    let whole = read(&[text], to_head, Form::Map);
    let lines = read(&[text], to_head, Form::Lines(&room));
    let (first, second) = text.split_at(usize::from(*choice).min(text.len()));
    match (&whole, read(&[first, second], to_head, Form::Map)) {
        (Ok(Some((one, behind))), Ok(Some((two, rest)))) => {
            assert_eq!((summary(one), fields(one)), (summary(&two), fields(&two)));
            assert_eq!(*behind, rest);
        }
        (Ok(None), Ok(None)) | (Err(()), Err(())) => {}
        (whole, pieces) => panic!("{whole:?} at once, {pieces:?} in two"),
    }
    assert_eq!(
        whole.as_ref().map(Option::is_some),
        lines.as_ref().map(Option::is_some),
        "in either form"
    );
    let (Ok(Some((head, behind))), Ok(Some((other, rest)))) = (whole, lines) else { return };
    assert_eq!((summary(&head), &behind), (summary(&other), &rest));
    assert!(text.ends_with(&behind), "what is behind the head stays as it is");
    check(&head);
    if head.status.is_informational() {
        assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
        return;
    }
    // With the date and the framing beside them there would be more fields than a reader takes: those are for a client to read.
    if fields(&head).len() + 3 > FIELDS {
        return;
    }
    let coding = match (head.framing, head.told) {
        (Framing::Chunked(_) | Framing::Close, _) => Coding::Chunked,
        (_, Some(length)) => Coding::Length(length),
        (_, None) => Coding::None,
    };
    let wanted = (head.status, fields(&head), head.framing);
    let ours = Ours { coding, after: After::AsUsual, date: "now" };
    for form in [head, other] {
        let sent = sent(form, &ours);
        let (again, behind) =
            read(&[&sent], to_head, Form::Map).expect("ours is a head").expect("a whole one");
        assert!(behind.is_empty(), "one head, and nothing behind it");
        assert_eq!((again.status, fields(&again)), (wanted.0, wanted.1.clone()));
        let chunked = matches!(
            (again.framing, wanted.2),
            (Framing::Chunked(_), Framing::Chunked(_) | Framing::Close)
        );
        assert!(
            chunked || coding == Coding::None || again.framing == wanted.2,
            "{:?}",
            again.framing
        );
    }
});
