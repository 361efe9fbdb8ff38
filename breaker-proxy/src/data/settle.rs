//! What a call really weighed, as its answer says it: looked for while the answer passes, and settled when the call ends. It changes no
//! answer, and delays none.

use super::Worker;
use crate::config::{Settle, SettleFrom};
use crate::inspect::decimal::Decimal;
use crate::inspect::events::{Event, Events};
use crate::inspect::json::{self, JsonError, Pointer, Value};
use crate::inspect::text::Room;
use crate::keys::body::{self, Kind};
use crate::wire::answer::Head;
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use std::cell::Cell;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;

/// A reservation, and what is known of its truth. The call and its answer share it.
#[derive(Debug)]
pub struct Settling {
    settle: Arc<Settle>,
    /// What was charged when the call was admitted.
    reserved: u64,
    known: Cell<Known>,
    /// The answer came to its good end.
    whole: Cell<bool>,
}

/// What an answer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// No number where it would stand.
    Nothing,
    /// So many units.
    Units(u64),
    /// What cannot be read, or says two things.
    Unread,
}

impl Settling {
    /// For a call that was charged `reserved`.
    #[must_use]
    pub fn new(settle: Arc<Settle>, reserved: u64) -> Settling {
        Settling { settle, reserved, known: Cell::new(Known::Nothing), whole: Cell::new(false) }
    }

    /// The true weight at the call's end; `None`: what was reserved stands.
    ///
    /// Of an answer that broke off no less is believed than was reserved, for more may have been used than it came to say; but what it said
    /// to be more is owed, or whoever has seen it would only have to leave.
    #[must_use]
    pub fn weight(&self) -> Option<u64> {
        match (self.known.get(), self.whole.get()) {
            (Known::Units(units), true) => Some(units),
            (Known::Units(units), false) => Some(units).filter(|units| *units > self.reserved),
            (Known::Nothing, true) => self.settle.missing,
            (Known::Nothing, false) | (Known::Unread, _) => None,
        }
    }
}

/// Looks for the number in an answer that passes.
pub struct Tap {
    settling: Rc<Settling>,
    worker: Rc<Worker>,
    looks: Looks,
    /// Bytes that are counted as held, of all that the worker holds for this.
    held: usize,
}

/// What is looked into.
enum Looks {
    /// Nothing more.
    Nothing,
    /// A JSON document, held until it is whole.
    Document(Vec<u8>),
    /// Events, one by one.
    Events(Events),
}

impl Tap {
    /// For the answer with this head.
    #[must_use]
    pub fn new(worker: &Rc<Worker>, settling: Rc<Settling>, head: &Head) -> Tap {
        let most = most(worker);
        let mut looks = Looks::Nothing;
        let known = match &settling.settle.from {
            SettleFrom::Header(name) => in_field(head, name, settling.settle.scale),
            SettleFrom::Body { .. } if head.status == StatusCode::PARTIAL_CONTENT => Known::Unread,
            SettleFrom::Body { json, events } => {
                let is = |kind| {
                    let codings = head.fields.all(&CONTENT_ENCODING);
                    body::is_plain(codings, head.fields.all(&CONTENT_TYPE), kind).is_ok()
                };
                let fits = head
                    .told
                    .is_none_or(|told| usize::try_from(told).is_ok_and(|told| told <= most));
                if json.is_some() && is(Kind::Json) && fits {
                    looks = Looks::Document(Vec::new());
                    Known::Nothing
                } else if events.is_some() && is(Kind::Events) {
                    looks = Looks::Events(Events::new(most));
                    Known::Nothing
                } else if head.told == Some(0) || head.status == StatusCode::NO_CONTENT {
                    Known::Nothing
                } else {
                    Known::Unread
                }
            }
        };
        settling.known.set(known);
        Tap { settling, worker: Rc::clone(worker), looks, held: 0 }
    }

    /// Takes the next bytes of the body.
    pub fn pass(&mut self, bytes: &[u8]) {
        let Tap { settling, looks, .. } = self;
        let most = most(&self.worker);
        let held = match looks {
            Looks::Nothing => return,
            Looks::Document(document) => {
                if document.len().saturating_add(bytes.len()) > most {
                    return self.give_up();
                }
                document.extend_from_slice(bytes);
                document.len()
            }
            Looks::Events(events) => {
                events.push(bytes, &mut |event| settling.hear(event));
                events.held()
            }
        };
        if !self.hold(held) {
            self.give_up();
        }
    }

    /// The body came to its good end.
    pub fn end(&mut self) {
        let settling = &self.settling;
        match &mut self.looks {
            Looks::Nothing => {}
            Looks::Document(document) => {
                if let SettleFrom::Body { json: Some(pointer), .. } = &settling.settle.from
                    && !document.is_empty()
                {
                    settling.known.set(in_document(document, pointer, settling.settle.scale));
                }
            }
            Looks::Events(events) => events.end(&mut |event| settling.hear(event)),
        }
        settling.whole.set(true);
        self.looks = Looks::Nothing;
        self.hold(0);
    }

    fn give_up(&mut self) {
        self.settling.known.set(Known::Unread);
        self.looks = Looks::Nothing;
        self.hold(0);
    }

    /// Notes how much is held; false: it is more than the worker may hold for all of its calls.
    fn hold(&mut self, held: usize) -> bool {
        let all = &self.worker.tapped;
        let now = all.get().saturating_sub(self.held).saturating_add(held);
        self.held = held;
        all.set(now);
        let bounds = &self.worker.plane.bounds;
        let workers = self.worker.plane.shards.len().max(1);
        let share = usize::try_from(bounds.inspecting).unwrap_or(usize::MAX).div_ceil(workers);
        now <= share.saturating_mul(most(&self.worker))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.hold(0);
    }
}

impl Settling {
    /// The last event that says the number counts. One that cannot be read might have been that one.
    fn hear(&self, event: Event<'_>) {
        let SettleFrom::Body { events: Some(pointer), .. } = &self.settle.from else { return };
        let heard = match event {
            Event::TooLong => Known::Unread,
            Event::Data(data) => match json::find(data, slice::from_ref(pointer)) {
                Ok([value, ..]) => units(value, self.settle.scale),
                Err(JsonError::Doubled(_) | JsonError::Otherwise(_)) => Known::Unread,
                // A sign of the end, or other words.
                Err(_) => Known::Nothing,
            },
        };
        if heard != Known::Nothing {
            self.known.set(heard);
        }
    }
}

/// Bytes of one answer that are held, at most.
fn most(worker: &Worker) -> usize {
    usize::try_from(worker.plane.bounds.inspect_bytes).unwrap_or(usize::MAX)
}

fn in_field(head: &Head, name: &HeaderName, scale: u8) -> Known {
    let mut values = head.fields.all(name);
    match (values.next(), values.next()) {
        (None, _) => Known::Nothing,
        (Some(value), None) => in_text(value.trim_ascii(), scale),
        (Some(_), Some(_)) => Known::Unread,
    }
}

fn in_document(document: &[u8], pointer: &Pointer, scale: u8) -> Known {
    match json::find(document, slice::from_ref(pointer)) {
        Ok([value, ..]) => units(value, scale),
        Err(_) => Known::Unread,
    }
}

/// A number, or a text that is one; `null` says nothing.
fn units(value: Option<Value<'_>>, scale: u8) -> Known {
    match value {
        None | Some(Value::Null) => Known::Nothing,
        Some(Value::Number(number)) => in_text(number.as_bytes(), scale),
        Some(Value::Text(text)) => {
            let mut room = Room::<NUMBER_MAX>::default();
            text.read(&mut room).map_or(Known::Unread, |text| in_text(text, scale))
        }
        Some(Value::Flag(_) | Value::Nested) => Known::Unread,
    }
}

fn in_text(text: &[u8], scale: u8) -> Known {
    let units = Decimal::parse(text).and_then(|number| number.units(scale));
    units.map_or(Known::Unread, Known::Units)
}

/// Bytes of a number that is written as a text.
const NUMBER_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn settling(missing: Option<u64>, events: &[&str]) -> Settling {
        let pointer = Pointer::parse("/usage/total").unwrap();
        let from = SettleFrom::Body { json: None, events: Some(pointer) };
        let settling = Settling::new(Arc::new(Settle { from, scale: 0, missing }), 100);
        events.iter().for_each(|data| settling.hear(Event::Data(data.as_bytes())));
        settling
    }

    /// Goal: of several events the last that says the number counts; what says nothing changes nothing, and what cannot be read leaves the
    /// reservation, until a later one says it plainly.
    #[test]
    fn the_last_event_that_says_it_counts() {
        let one = r#"{"usage":{"total":7}}"#;
        for (events, whole, broken) in [
            (&[one][..], Some(7), None),
            (&[one, r#"{"usage":{"total":"250"}}"#], Some(250), Some(250)),
            (&[one, r#"{"usage":null}"#, r#"{"x":1}"#, "[DONE]", ""], Some(7), None),
            (&[one, r#"{"usage":{"total":-1}}"#], None, None),
            (&[one, r#"{"usage":{"total":true}}"#], None, None),
            (&[one, r#"{"usage":{"total":1,"total":2}}"#], None, None),
            (&[r#"{"usage":{"total":[]}}"#, one], Some(7), None),
            (&[r#"{"usage":{"total":1e99}}"#], None, None),
            (&[], Some(3), None),
        ] {
            let settling = settling(Some(3), events);
            assert_eq!(settling.weight(), broken, "{events:?} broke off");
            settling.whole.set(true);
            assert_eq!(settling.weight(), whole, "{events:?}");
        }
        let unsaid = settling(None, &[]);
        unsaid.whole.set(true);
        assert_eq!(unsaid.weight(), None, "the reservation stands");
    }

    /// Goal: an event that was too long may have been the one that counts.
    #[test]
    fn a_lost_event_leaves_the_reservation() {
        let settling = settling(Some(3), &[r#"{"usage":{"total":7}}"#]);
        settling.whole.set(true);
        settling.hear(Event::TooLong);
        assert_eq!(settling.weight(), None);
    }
}
