//! Finds the keys and the weight of a request, wherever a route says they stand; it decides nothing about them.
//!
//! Whatever two readers could take for different things is refused: the limits, and whoever kills a key, must mean the very client
//! that the upstream will see. So each value has one canonical form, and [`spelled`] gives it for a label that a person wrote.

pub mod body;
mod label;
mod peer;

pub use peer::MAX_HOPS;

use crate::config::{KeyFrom, KeySource, Missing, Segment, Unreadable, Weight};
use crate::inspect::certificate::{self, Identity, Stands};
use crate::inspect::decimal::{Decimal, DecimalError};
use crate::inspect::form::{self, Encoded, FormError};
use crate::inspect::json::{self, JsonError, Pointer, Value};
use crate::inspect::prefix::Seen;
use crate::inspect::text::Room;
use crate::inspect::{MAX_WANTED, token};
use crate::wire::asked::{Asked, Fields};
use body::Kind;
use breaker_core::{Breaker, Call};
use hyper::header::{AUTHORIZATION, HeaderName};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of a key's value, at most.
pub const LABEL_MAX: usize = 256;

/// Room for a key's value that must be decoded.
type LabelRoom = Room<LABEL_MAX>;

/// All that keys and weights are read from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The head.
    pub head: &'a Asked<'a>,
    /// The canonical path.
    pub path: &'a str,
    /// The peer's address.
    pub peer: IpAddr,
    /// What the certificate says that the peer showed.
    pub certificate: Option<&'a Identity>,
    /// The bytes of the body, if its head says them.
    pub length: Option<u64>,
    /// What was seen of the body, for a [`Reader`] that looks into it.
    pub body: Seen<'a>,
}

/// Why a request's keys or weight could not be read; the request must be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// What could not, as the client knows it.
    pub what: String,
    /// The reason.
    pub why: Why,
}

/// The reason why a part of a request could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// It is not there.
    Missing,
    /// It stands there twice: two readers could take different ones.
    Doubled,
    /// Something stands there that only some readers take for it.
    Otherwise,
    /// It is longer than [`LABEL_MAX`] bytes.
    TooLong,
    /// It is not what it must be; the words fit behind its name.
    Unfit(&'static str),
    /// It is in something that cannot be read; the words fit behind its name.
    Unreadable(&'static str),
    /// It stands in a body that is longer than is looked into.
    LongBody,
    /// It stands in a body with a content coding.
    Encoded,
    /// It stands in a body whose type is not the one that is looked into, or not said plainly.
    OtherType,
}

impl Why {
    /// Whether the part is there and only cannot be read: what a configuration may treat as if it were missing.
    const fn is_unreadable(self) -> bool {
        matches!(self, Why::Unreadable(_) | Why::LongBody | Why::Encoded | Why::OtherType)
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match self.why {
            Why::Missing => write!(f, "the request lacks {what}"),
            Why::Doubled => write!(f, "the request gives {what} more than once"),
            Why::Otherwise => {
                write!(f, "the request gives {what} in a form that only some readers understand")
            }
            Why::TooLong => write!(f, "{what} is longer than {LABEL_MAX} bytes"),
            Why::Unfit(how) | Why::Unreadable(how) => write!(f, "{what} {how}"),
            Why::LongBody => write!(f, "the body is too long to be looked into for {what}"),
            Why::Encoded => {
                write!(f, "the body has a content coding and is not looked into for {what}")
            }
            Why::OtherType => write!(
                f,
                "the body does not say that it is of the type in which {what} is looked for"
            ),
        }
    }
}

impl std::error::Error for KeyError {}

/// Reads the keys and the weight of the calls of one route.
#[derive(Debug)]
pub struct Reader {
    dimensions: Vec<Dimension>,
    weight: Option<Weighing>,
    /// What is looked for in the query, in one pass; and so on.
    query: Vec<Box<str>>,
    form: Vec<Box<str>>,
    json: Vec<Pointer>,
    claims: Vec<Pointer>,
    trusted: Arc<[IpNet]>,
}

/// One key dimension of a route.
#[derive(Debug)]
struct Dimension {
    name: String,
    source: KeySource,
    part: Part,
}

#[derive(Debug)]
enum Weighing {
    Constant(u64),
    Length,
    Quantity { parts: (Part, Option<Part>), scale: u8, missing: Option<u64>, told: String },
}

/// A part of a request as the reader finds it. Numbers are places in its lists, and of a segment the place in the path from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Header(HeaderName),
    Query(usize),
    Form(usize),
    Json(usize),
    Claim(usize),
    Segment(Option<usize>),
    Peer,
    Forwarded(usize),
    Certificate(certificate::Part),
}

/// What one pass over each source found.
struct Found<'a> {
    query: Option<Result<[Option<Encoded<'a>>; MAX_WANTED], FormError>>,
    form: Option<Result<[Option<Encoded<'a>>; MAX_WANTED], BodyError<FormError>>>,
    json: Option<Result<[Option<Value<'a>>; MAX_WANTED], BodyError<JsonError>>>,
    claims: Option<Result<[Option<Value<'a>>; MAX_WANTED], BodyError<JsonError>>>,
}

/// Why nothing was found in a whole source.
#[derive(Clone, Copy)]
enum BodyError<E> {
    /// It was not looked into.
    Before(Why),
    /// What is in it.
    Within(E),
}

/// A part's value, not yet in its canonical form.
#[derive(Clone, Copy)]
enum Raw<'a> {
    Field(&'a [u8]),
    Encoded(Encoded<'a>),
    Json(Value<'a>),
    Segment(&'a str),
    Address(IpAddr),
    Text(&'a str),
}

impl Reader {
    /// For a route with these dimensions, in the order of the policy's, this weight and this path pattern. `trusted` are the networks
    /// whose word on the client's address is taken.
    #[must_use]
    pub fn new(
        dimensions: Vec<(String, KeySource)>,
        weight: Option<&Weight>,
        pattern: &str,
        trusted: Arc<[IpNet]>,
    ) -> Reader {
        let mut reader = Reader {
            dimensions: Vec::with_capacity(dimensions.len()),
            weight: None,
            query: Vec::new(),
            form: Vec::new(),
            json: Vec::new(),
            claims: Vec::new(),
            trusted,
        };
        for (name, source) in dimensions {
            let part = reader.part(&source.from, pattern);
            reader.dimensions.push(Dimension { name, source, part });
        }
        reader.weight = weight.map(|weight| match weight {
            Weight::Constant(weight) => Weighing::Constant(*weight),
            Weight::Length => Weighing::Length,
            Weight::Quantity { from, times, scale, missing } => {
                let told = match times {
                    Some(times) => format!("{from} times {times}"),
                    None => from.to_string(),
                };
                let first = reader.part(from, pattern);
                let times = times.as_ref().map(|times| reader.part(times, pattern));
                Weighing::Quantity { parts: (first, times), scale: *scale, missing: *missing, told }
            }
        });
        reader
    }

    fn part(&mut self, from: &KeyFrom, pattern: &str) -> Part {
        fn placed<T: PartialEq>(list: &mut Vec<T>, wanted: T) -> usize {
            list.iter().position(|known| *known == wanted).unwrap_or_else(|| {
                list.push(wanted);
                list.len().saturating_sub(1)
            })
        }
        match from {
            KeyFrom::Header(name) => Part::Header(name.clone()),
            KeyFrom::Query(name) => Part::Query(placed(&mut self.query, name.as_str().into())),
            KeyFrom::Form(name) => Part::Form(placed(&mut self.form, name.as_str().into())),
            KeyFrom::Json(pointer) => Part::Json(placed(&mut self.json, pointer.clone())),
            KeyFrom::Claim(pointer) => Part::Claim(placed(&mut self.claims, pointer.clone())),
            KeyFrom::Segment(segment) => Part::Segment(place(segment, pattern)),
            KeyFrom::Peer => Part::Peer,
            KeyFrom::Forwarded(hops) => Part::Forwarded(usize::from(*hops)),
            KeyFrom::Certificate(part) => Part::Certificate(*part),
        }
    }

    /// Whether it must see the body of a request.
    #[must_use]
    pub fn looks_into_body(&self) -> bool {
        !self.json.is_empty() || !self.form.is_empty()
    }

    /// Where the keys of this dimension come from.
    #[must_use]
    pub fn source(&self, dimension: &str) -> Option<&KeySource> {
        self.dimensions.iter().find(|own| own.name == dimension).map(|own| &own.source)
    }

    /// Adds the keys and the weight of a request to a call, and says whether a key counts as missing only because it could not be read.
    ///
    /// # Errors
    /// The first of them that is missing, ambiguous or unreadable where the configuration does not say otherwise.
    pub fn read(
        &self,
        breaker: &Breaker,
        given: &Given<'_>,
        mut call: Call,
    ) -> Result<(Call, bool), KeyError> {
        let mut unread = false;
        let payload = self.payload(given);
        let found = self.find(given, &payload);
        for (index, dimension) in (0u8..).zip(&self.dimensions) {
            let mut room = LabelRoom::default();
            let refused = |why| {
                let part = self.blamed(&dimension.part, &found);
                let part = part.unwrap_or_else(|| dimension.source.from.to_string());
                KeyError { what: format!("{part} (its key `{}`)", dimension.name), why }
            };
            let label = match self.label(&dimension.part, given, &found, &mut room) {
                Err(why)
                    if why.is_unreadable()
                        && dimension.source.unreadable == Unreadable::Missing =>
                {
                    unread = true;
                    None
                }
                label => label.map_err(refused)?,
            };
            match label {
                Some(label) => call = call.with_key(index, breaker.hash(label)),
                None => match dimension.source.missing {
                    Missing::Refuse => return Err(refused(Why::Missing)),
                    // The rules say the same of a call without the key.
                    Missing::Share | Missing::Skip => {}
                },
            }
        }
        match self.weigh(given, &found) {
            Ok(Some(weight)) => Ok((call.weighing(weight), unread)),
            Ok(None) => Ok((call, unread)),
            Err(why) => Err(KeyError { what: self.told_weight(), why }),
        }
    }

    fn told_weight(&self) -> String {
        match &self.weight {
            Some(Weighing::Quantity { told, .. }) => format!("its weight ({told})"),
            Some(Weighing::Length) => "its weight (the length of the body)".to_owned(),
            Some(Weighing::Constant(_)) | None => "its weight".to_owned(),
        }
    }

    /// One pass serves several parts: where it failed for one of them, that one is to be named.
    fn blamed(&self, part: &Part, found: &Found<'_>) -> Option<String> {
        let form = |why: &FormError| match why {
            FormError::Doubled(place) | FormError::Otherwise(place) => Some(*place),
            FormError::Encoding => None,
        };
        let json = |why: &JsonError| match why {
            JsonError::Doubled(place) | JsonError::Otherwise(place) => Some(*place),
            _ => None,
        };
        Some(match (part, found) {
            (Part::Query(_), Found { query: Some(Err(why)), .. }) => {
                KeyFrom::Query(self.query.get(form(why)?)?.to_string()).to_string()
            }
            (Part::Form(_), Found { form: Some(Err(BodyError::Within(why))), .. }) => {
                KeyFrom::Form(self.form.get(form(why)?)?.to_string()).to_string()
            }
            (Part::Json(_), Found { json: Some(Err(BodyError::Within(why))), .. }) => {
                KeyFrom::Json(self.json.get(json(why)?)?.clone()).to_string()
            }
            (Part::Claim(_), Found { claims: Some(Err(BodyError::Within(why))), .. }) => {
                KeyFrom::Claim(self.claims.get(json(why)?)?.clone()).to_string()
            }
            _ => return None,
        })
    }

    /// The labels of a request's keys, for the moment when one of them is refused and needs its name.
    pub fn each_label(&self, given: &Given<'_>, mut take: impl FnMut(u8, &[u8])) {
        let payload = self.payload(given);
        let found = self.find(given, &payload);
        for (index, dimension) in (0u8..).zip(&self.dimensions) {
            let mut room = LabelRoom::default();
            if let Ok(Some(label)) = self.label(&dimension.part, given, &found, &mut room) {
                take(index, label);
            }
        }
    }

    /// The payload of the request's bearer token, if anyone asks for it and there is one.
    fn payload(&self, given: &Given<'_>) -> Result<Option<Vec<u8>>, Why> {
        if self.claims.is_empty() {
            return Ok(None);
        }
        let Some(field) = field(given, &AUTHORIZATION)? else { return Ok(None) };
        token::payload(field)
            .map_err(|_| Why::Unreadable("is in no token whose claims can be read"))
    }

    fn find<'a>(&self, given: &Given<'a>, payload: &'a Result<Option<Vec<u8>>, Why>) -> Found<'a> {
        let query = (!self.query.is_empty()).then(|| {
            let query = given.head.query.unwrap_or_default();
            form::find(query.as_bytes(), &self.query)
        });
        let body = |kind| match given.body {
            Seen::Whole(b"") => Ok(None),
            Seen::Whole(body) => body::is_readable(given.head.fields, kind).map(|()| Some(body)),
            Seen::TooLong => Err(Why::LongBody),
            // Whoever asks the reader looks into the body if the reader wants to.
            Seen::Nothing => Err(Why::Unreadable("was not looked for")),
        };
        let form = (!self.form.is_empty()).then(|| match body(Kind::Form) {
            Ok(Some(body)) => form::find(body, &self.form).map_err(BodyError::Within),
            Ok(None) => Ok([None; MAX_WANTED]),
            Err(why) => Err(BodyError::Before(why)),
        });
        let document =
            |document: Result<Option<&'a [u8]>, Why>, pointers: &[Pointer]| match document {
                Ok(Some(document)) => json::find(document, pointers).map_err(BodyError::Within),
                Ok(None) => Ok([None; MAX_WANTED]),
                Err(why) => Err(BodyError::Before(why)),
            };
        let json = (!self.json.is_empty()).then(|| document(body(Kind::Json), &self.json));
        let claims = (!self.claims.is_empty()).then(|| {
            let payload = payload.as_ref().map(Option::as_deref).map_err(|why| *why);
            document(payload, &self.claims)
        });
        Found { query, form, json, claims }
    }

    /// The value of one part; an empty one counts as a missing one.
    fn raw<'a>(
        &self,
        part: &Part,
        given: &Given<'a>,
        found: &Found<'a>,
    ) -> Result<Option<Raw<'a>>, Why> {
        fn at<T: Copy>(list: &[Option<T>; MAX_WANTED], place: usize) -> Option<T> {
            list.get(place).copied().flatten()
        }
        Ok(match part {
            Part::Header(name) => field(given, name)?.map(Raw::Field),
            Part::Query(place) => match &found.query {
                Some(Ok(list)) => at(list, *place).map(Raw::Encoded),
                Some(Err(why)) => return Err(of_form(*why)),
                None => None,
            },
            Part::Form(place) => match &found.form {
                Some(Ok(list)) => at(list, *place).map(Raw::Encoded),
                Some(Err(BodyError::Before(why))) => return Err(*why),
                Some(Err(BodyError::Within(why))) => return Err(of_form(*why)),
                None => None,
            },
            Part::Json(place) | Part::Claim(place) => {
                let source =
                    if matches!(part, Part::Json(_)) { &found.json } else { &found.claims };
                match source {
                    Some(Ok(list)) => at(list, *place).map(Raw::Json),
                    Some(Err(BodyError::Before(why))) => return Err(*why),
                    Some(Err(BodyError::Within(why))) => return Err(of_json(*why)),
                    None => None,
                }
            }
            Part::Segment(Some(place)) => {
                // Before the first slash there is nothing.
                given.path.split('/').nth(place.saturating_add(1)).map(Raw::Segment)
            }
            Part::Segment(None) => None,
            Part::Peer => Some(Raw::Address(given.peer)),
            Part::Certificate(part) => match given.certificate.map(|shown| shown.part(*part)) {
                None | Some(Stands::Nothing) => None,
                Some(Stands::One(text)) => Some(Raw::Text(text)),
                Some(Stands::Many) => return Err(Why::Doubled),
                Some(Stands::Unreadable) => return Err(Why::Unfit("cannot be read")),
            },
            Part::Forwarded(hops) => {
                let fields = given.head.fields;
                peer::client(fields, given.peer, *hops, &self.trusted)
                    .map(Raw::Address)
                    .map(Some)?
            }
        })
    }

    /// The canonical value of one key.
    fn label<'r, 'a: 'r>(
        &self,
        part: &Part,
        given: &Given<'a>,
        found: &Found<'a>,
        room: &'r mut LabelRoom,
    ) -> Result<Option<&'r [u8]>, Why> {
        match self.raw(part, given, found)? {
            None => Ok(None),
            Some(Raw::Field(value)) => label::of_field(value),
            Some(Raw::Encoded(value)) => label::of_encoded(value, room),
            Some(Raw::Json(value)) => label::of_json(value, room),
            Some(Raw::Segment(segment)) => label::of_segment(segment, room),
            Some(Raw::Address(address)) => Ok(Some(peer::peer_label(address, room))),
            Some(Raw::Text(text)) => label::of_text(text.as_bytes()),
        }
    }

    fn weigh(&self, given: &Given<'_>, found: &Found<'_>) -> Result<Option<u64>, Why> {
        match &self.weight {
            None => Ok(None),
            Some(Weighing::Constant(weight)) => Ok(Some(*weight)),
            Some(Weighing::Length) => given.length.map(Some).ok_or(Why::Missing),
            Some(Weighing::Quantity { parts: (part, times), scale, missing, .. }) => {
                let number = self.quantity(part, given, found)?;
                let product = match times {
                    None => number,
                    Some(times) => match (number, self.quantity(times, given, found)?) {
                        (Some(number), Some(times)) => {
                            Some(number.times(times).map_err(of_decimal)?)
                        }
                        _ => None,
                    },
                };
                match product {
                    Some(product) => product.units(*scale).map(Some).map_err(of_decimal),
                    None => missing.map(Some).ok_or(Why::Missing),
                }
            }
        }
    }

    /// A quantity, in a field, a parameter or a body; in JSON a number, or a text that is one.
    fn quantity(
        &self,
        part: &Part,
        given: &Given<'_>,
        found: &Found<'_>,
    ) -> Result<Option<Decimal>, Why> {
        let mut room = LabelRoom::default();
        let text = match self.raw(part, given, found)? {
            None | Some(Raw::Json(Value::Null)) => return Ok(None),
            Some(Raw::Field(value)) => value.trim_ascii(),
            Some(Raw::Encoded(value)) => {
                value.read(&mut room).map_err(of_form)?.ok_or(Why::TooLong)?
            }
            Some(Raw::Json(Value::Number(number))) => number.as_bytes(),
            Some(Raw::Json(Value::Text(text))) => text.read(&mut room).ok_or(Why::TooLong)?,
            Some(Raw::Segment(segment)) => segment.as_bytes(),
            Some(Raw::Text(text)) => text.as_bytes(),
            Some(Raw::Json(_) | Raw::Address(_)) => {
                return Err(of_decimal(DecimalError::NotANumber));
            }
        };
        if text.is_empty() {
            return Ok(None);
        }
        Decimal::parse(text).map(Some).map_err(of_decimal)
    }
}

/// The client's address as trusted proxies tell of it; the peer's own where they tell nonsense.
#[must_use]
pub fn client_address(fields: Fields<'_>, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    peer::client(fields, peer, MAX_HOPS, trusted).unwrap_or_else(|_| peer.to_canonical())
}

/// The one spelling of a label in which requests carry it; `None` if no request ever does. Whoever kills a key by another
/// spelling would be told "done" while its calls go on.
#[must_use]
pub fn spelled(from: &KeyFrom, label: &[u8]) -> Option<Vec<u8>> {
    let is_own = |own: Result<Option<&[u8]>, Why>| own == Ok(Some(label));
    let is_spelled = match from {
        KeyFrom::Peer | KeyFrom::Forwarded(_) => return peer::spelled_peer(label),
        KeyFrom::Header(_) => {
            let fits = |byte: &u8| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7F);
            is_own(label::of_field(label)) && label.iter().all(fits)
        }
        KeyFrom::Segment(_) => is_own(label::of_text(label)) && label::fits_segment(label),
        KeyFrom::Query(_) | KeyFrom::Form(_) | KeyFrom::Json(_) | KeyFrom::Claim(_) => {
            is_own(label::of_text(label))
        }
        KeyFrom::Certificate(certificate::Part::Dns | certificate::Part::Fingerprint) => {
            let lower = label.to_ascii_lowercase();
            let own = label::of_text(&lower) == Ok(Some(&lower[..]));
            return own.then_some(lower);
        }
        KeyFrom::Certificate(_) => is_own(label::of_text(label)),
    };
    is_spelled.then(|| label.to_vec())
}

/// Which segment of the paths of this pattern is meant, counted from 0; `None`: there is none.
#[must_use]
pub fn place(segment: &Segment, pattern: &str) -> Option<usize> {
    match segment {
        Segment::At(place) => usize::from(*place).checked_sub(1),
        Segment::Named(name) => {
            let inner = |piece: &str| piece.strip_prefix('{')?.strip_suffix('}').map(str::to_owned);
            pattern.split('/').skip(1).position(|piece| inner(piece).as_ref() == Some(name))
        }
    }
}

/// The value of the only field of this name. One that is called so only where `_` and `-` are the same, as for servers that turn fields
/// into variables, is neither the field nor harmless.
fn field<'a>(given: &Given<'a>, name: &HeaderName) -> Result<Option<&'a [u8]>, Why> {
    let own = name.as_str();
    let mut found = None;
    for (other, value) in given.head.fields.iter().filter(|(other, _)| other.len() == own.len()) {
        if other == own {
            if found.replace(value).is_some() {
                return Err(Why::Doubled);
            }
        } else if dashes(other).eq(dashes(own)) {
            return Err(Why::Otherwise);
        }
    }
    Ok(found)
}

fn dashes(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte })
}

fn of_form(why: FormError) -> Why {
    match why {
        FormError::Encoding => Why::Unfit("is no proper encoding, or is among names that are none"),
        FormError::Doubled(_) => Why::Doubled,
        FormError::Otherwise(_) => Why::Otherwise,
    }
}

fn of_json(why: JsonError) -> Why {
    match why {
        JsonError::Doubled(_) => Why::Doubled,
        JsonError::Otherwise(_) => Why::Otherwise,
        JsonError::TooDeep => Why::Unreadable("is in a document that is too deep"),
        JsonError::NotText | JsonError::Syntax(_) => {
            Why::Unreadable("is in what is no JSON document")
        }
    }
}

fn of_decimal(why: DecimalError) -> Why {
    Why::Unfit(match why {
        DecimalError::NotANumber => "is not a number",
        DecimalError::Negative => "is negative",
        DecimalError::TooLarge => "is too large to be counted",
    })
}

#[cfg(test)]
mod tests;
