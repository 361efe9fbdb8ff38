//! The head of an upstream's answer: the same however it arrives, of one framing, without a field of the upstream's connection; and
//! what is written of it for the client is read once more and says the same.
#![no_main]

use breaker_proxy::wire::answer::{Framing, Head, Seen, take};
use breaker_proxy::wire::response::{self, After, Coding, Ours};
use bytes::BytesMut;
use hyper::header::CONTENT_LENGTH;
use hyper::{StatusCode, header::HeaderMap};
use libfuzzer_sys::fuzz_target;

/// The head, and what is left behind it; `None` if it did not come.
fn read(pieces: &[&[u8]], to_head: bool) -> Result<Option<(Head, Vec<u8>)>, ()> {
    let (mut input, mut seen, mut found) = (BytesMut::new(), Seen::default(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        if found.is_none() {
            found = take(&mut input, to_head, &mut seen).map_err(|_| ())?;
        }
    }
    Ok(found.map(|head| (head, input.to_vec())))
}

fn summary(head: &Head) -> (StatusCode, &HeaderMap, Framing, bool, bool) {
    (head.status, &head.fields, head.framing, head.lasts, head.is_websocket)
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let to_head = choice % 2 == 1;
    let whole = read(&[text], to_head);
    let (first, second) = text.split_at(usize::from(*choice).min(text.len()));
    match (&whole, read(&[first, second], to_head)) {
        (Ok(Some((one, behind))), Ok(Some((two, rest)))) => {
            assert_eq!(summary(one), summary(&two));
            assert_eq!(*behind, rest);
        }
        (Ok(None), Ok(None)) | (Err(()), Err(())) => {}
        (whole, pieces) => panic!("{whole:?} at once, {pieces:?} in two"),
    }
    let Ok(Some((head, behind))) = whole else { return };
    assert!(text.ends_with(&behind), "what is behind the head stays as it is");
    for name in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"] {
        assert!(!head.fields.contains_key(name), "{name} passed");
    }
    let lengths: Vec<_> = head.fields.get_all(CONTENT_LENGTH).iter().collect();
    assert!(lengths.len() <= 1);
    match head.framing {
        Framing::Length(length) => assert_eq!(lengths, [&*length.to_string()]),
        Framing::Chunked(_) => assert!(lengths.is_empty()),
        Framing::Close => assert!(lengths.is_empty() && !head.lasts),
        Framing::None => {}
    }
    if head.status.is_informational() {
        assert_eq!(head.status, StatusCode::SWITCHING_PROTOCOLS);
        return;
    }
    let told = head.fields.get(CONTENT_LENGTH).map(|value| value.to_str().expect("digits"));
    let told = told.map(|value| value.parse::<u64>().expect("a number"));
    let coding = match (head.framing, told) {
        (Framing::Chunked(_) | Framing::Close, _) => Coding::Chunked,
        (_, Some(length)) => Coding::Length(length),
        (_, None) => Coding::None,
    };
    let fields = head.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut sent = Vec::new();
    let ours = Ours { coding, after: After::AsUsual, date: "now" };
    response::write(&mut sent, head.status, fields, &ours);
    let (again, behind) = read(&[&sent], to_head).expect("ours is a head").expect("a whole one");
    assert!(behind.is_empty(), "one head, and nothing behind it");
    assert_eq!(again.status, head.status);
    let same = matches!((again.framing, head.framing), (Framing::Chunked(_), Framing::Chunked(_) | Framing::Close));
    let bodiless = coding == Coding::None;
    assert!(same || bodiless || again.framing == head.framing, "{:?} and {:?}", again.framing, head.framing);
    let trimmed = |map: &HeaderMap| -> Vec<(String, Vec<u8>)> {
        let mut list: Vec<_> = map
            .iter()
            .filter(|(name, _)| *name != "date" && *name != CONTENT_LENGTH)
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect();
        list.sort();
        list
    };
    assert_eq!(trimmed(&again.fields), trimmed(&head.fields));
});
