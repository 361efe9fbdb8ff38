//! What people are to see of each request: the access log and spans.

use super::super::raw::{Report, Section};
use super::super::sight::{AccessLog, LogFormat, LogTo, RequestId};
use super::super::value::{Flaw, flaw, parse_bytes};
use super::{Text, file_path, judged, word};

/// The access log, if there is to be one.
pub(super) fn access_log(section: Option<Section>, report: &mut Report<'_>) -> Option<AccessLog> {
    let mut section = section?;
    if !section.has("path") {
        let hint = "name a file, or say \"stdout\"; without [access_log] there is none";
        report.wrong(section.path_of("path"), "is missing", hint);
    }
    let to = section.text("path", report).and_then(|text| match text.value.as_str() {
        "stdout" => Some(LogTo::Stdout),
        _ => file_path(&text, report).map(LogTo::File),
    });
    let formats = [("json", LogFormat::Json), ("combined", LogFormat::Combined)];
    let format = section.text("format", report).and_then(|text| word(&text, &formats, report));
    let query = section.flag("query", report);
    let mut size = |key: &str, example: &str, parse: fn(&str) -> Result<u32, Flaw>| {
        let text: Option<Text> = section.quantity(key, example, report);
        text.and_then(|text| judged(&text, parse, report))
    };
    let field_bytes = size("field_bytes", "1KiB", parse_field_bytes);
    let queue_bytes = size("queue_bytes", "4MiB", parse_queue_bytes);
    Some(AccessLog {
        to: to?,
        format: format.unwrap_or(LogFormat::Json),
        query: query.unwrap_or(false),
        field_bytes: field_bytes.unwrap_or(1024),
        queue_bytes: queue_bytes.unwrap_or(4 * 1024 * 1024),
    })
}

/// Whether requests have spans.
pub(super) fn spans(section: Option<Section>, report: &mut Report<'_>) -> bool {
    section.and_then(|mut section| section.flag("spans", report)).unwrap_or(false)
}

/// Whether requests have ids of ours.
pub(super) fn request_id(section: &mut Section, report: &mut Report<'_>) -> RequestId {
    let words = [("off", RequestId::Off), ("make", RequestId::Make)];
    let found = section.text("request_id", report);
    found.and_then(|text| word(&text, &words, report)).unwrap_or(RequestId::Off)
}

fn parse_field_bytes(text: &str) -> Result<u32, Flaw> {
    match u32::try_from(parse_bytes(text)?) {
        Ok(bytes) if bytes < 64 => flaw("is too small to tell anything", "use at least 64B"),
        Ok(bytes) if bytes <= 16 * 1024 => Ok(bytes),
        _ => flaw("is too large for a part of a line", "use at most 16KiB"),
    }
}

/// Less than a few batches would be full at once.
fn parse_queue_bytes(text: &str) -> Result<u32, Flaw> {
    match u32::try_from(parse_bytes(text)?) {
        Ok(bytes) if bytes < 512 * 1024 => flaw("is too small for a queue", "use at least 512KiB"),
        Ok(bytes) if bytes <= 1024 * 1024 * 1024 => Ok(bytes),
        _ => flaw("is too large to be held", "use at most 1GiB"),
    }
}
