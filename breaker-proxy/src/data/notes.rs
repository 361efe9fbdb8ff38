//! What is kept of a request for those who look at it one by one: for its line in the access log and its span, and its id. Where nobody
//! looks nothing is kept. It decides nothing.

use super::peer::Peer;
use super::visit::Verdict;
use crate::access::Access;
use crate::access::line::{self, Line};
use crate::keys;
use crate::ports::Wall;
use crate::snapshot::{Snapshot, detector_name, limit_name};
use crate::wire::asked::Asked;
use crate::wire::ids;
use breaker_core::{By, Cause, Denial, Span};
use hyper::header;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// Who looks at requests one by one.
#[derive(Debug)]
pub struct Sight {
    /// The access log.
    pub log: Option<Access>,
    /// Requests have ids.
    pub ids: bool,
    /// Requests have spans.
    pub spans: bool,
    /// Networks of those in front of us whose word on the client, and whose ids, are taken.
    pub trusted: Box<[IpNet]>,
}

impl Sight {
    /// Does anybody?
    #[must_use]
    pub fn looks(&self) -> bool {
        self.log.is_some() || self.ids || self.spans
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&peer))
    }
}

/// A place in the text of the notes.
type Piece = Option<(usize, usize)>;

/// What was kept of one request. Its memory serves one after the other.
#[derive(Debug)]
pub struct Notes {
    /// All that was kept, one behind the other.
    text: Vec<u8>,
    client: IpAddr,
    peer: IpAddr,
    protocol: &'static str,
    method: Piece,
    path: Piece,
    query: Piece,
    host: Piece,
    agent: Piece,
    referer: Piece,
    request_id: Piece,
    trace: Piece,
    route: Piece,
    upstream: Piece,
    scope: Piece,
    limit: Piece,
    detector: Piece,
    id: Piece,
    shadow: bool,
    span: Option<tracing::Span>,
}

impl Default for Notes {
    fn default() -> Notes {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Notes {
            text: Vec::new(),
            client: nobody,
            peer: nobody,
            protocol: "",
            method: None,
            path: None,
            query: None,
            host: None,
            agent: None,
            referer: None,
            request_id: None,
            trace: None,
            route: None,
            upstream: None,
            scope: None,
            limit: None,
            detector: None,
            id: None,
            shadow: false,
            span: None,
        }
    }
}

/// How a request ended, for the notes to tell.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// When.
    pub at: Wall,
    /// The status of its answer, if it had one.
    pub status: Option<u16>,
    /// What became of it.
    pub verdict: Verdict,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of its answer's body.
    pub bytes_out: u64,
    /// From its first byte to the last of its answer.
    pub whole: Span,
    /// Of that, what nobody else was waited for.
    pub added: Span,
}

impl Notes {
    /// Begins anew, with a request of which nothing could be read. `fresh` makes an id.
    pub fn begin(&mut self, sight: &Sight, peer: &Peer, fresh: impl FnOnce() -> [u8; 32]) {
        self.clear();
        (self.peer, self.client, self.protocol) = (peer.ip, peer.ip, "HTTP/1.1");
        if sight.ids {
            self.request_id = self.push(&fresh(), usize::MAX);
        }
        if sight.spans {
            self.begin_span(None);
        }
    }

    /// Begins anew, with this request.
    pub fn take(
        &mut self,
        sight: &Sight,
        peer: &Peer,
        asked: &Asked<'_>,
        fresh: impl FnOnce() -> [u8; 32],
    ) {
        self.clear();
        (self.peer, self.client) = (peer.ip, peer.ip);
        self.protocol = match (asked.http2, asked.http10) {
            (true, _) => "HTTP/2.0",
            (_, true) => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        if sight.ids {
            let given = ids::request_id(asked.fields).filter(|_| sight.trusts(peer.ip));
            self.request_id = match given {
                Some(id) => self.push(id, usize::MAX),
                None => self.push(&fresh(), usize::MAX),
            };
        }
        let parent = ids::trace_parent(asked.fields);
        if let Some(log) = &sight.log {
            self.trace = parent.and_then(|parent| self.push(parent.trace.as_bytes(), usize::MAX));
            self.client = keys::client_address(asked.fields, peer.ip, &sight.trusted);
            let most = log.field_bytes;
            self.method = self.push(asked.method.as_str().as_bytes(), most);
            self.path = self.push(asked.path.as_bytes(), most);
            if log.query {
                self.query = asked.query.and_then(|query| self.push(query.as_bytes(), most));
            }
            let host = asked.authority.map(str::as_bytes).or_else(|| asked.fields.host().1);
            self.host = host.and_then(|host| self.push(host, most));
            let mut agents = asked.fields.all(&header::USER_AGENT);
            self.agent = agents.next().and_then(|agent| self.push(agent, most));
            let mut referers = asked.fields.all(&header::REFERER);
            self.referer = referers.next().and_then(|referer| self.push(referer, most));
        }
        if sight.spans {
            self.begin_span(parent);
        }
    }

    /// A route took it.
    pub fn routed(&mut self, sight: &Sight, route: &str, path: &str, upstream: &str) {
        if let Some(span) = &self.span {
            span.record("route", route);
        }
        if let Some(log) = &sight.log {
            self.route = self.push(route.as_bytes(), usize::MAX);
            if self.piece(self.path) != Some(path.as_bytes()) {
                self.path = self.push(path.as_bytes(), log.field_bytes);
            }
            self.upstream = self.push(upstream.as_bytes(), usize::MAX);
        }
    }

    /// Where it was sent, more exactly.
    pub fn sent_to(&mut self, endpoint: &str) {
        self.upstream = self.push(endpoint.as_bytes(), usize::MAX);
    }

    /// A gate or limit refused it, or would have.
    pub fn denied(&mut self, snapshot: &Snapshot, denial: &Denial, names: &super::names::Names) {
        let scope = names.scope(&snapshot.policy, denial.place);
        self.scope = self.push(scope.as_str().as_bytes(), usize::MAX);
        match denial.cause {
            Cause::Limit(index) | Cause::Tripped(By::Limit(index)) => {
                let name = snapshot.policy.limit_of(denial).map(|limit| limit_name(limit, index));
                self.limit = name.and_then(|name| self.push(name.as_bytes(), usize::MAX));
            }
            Cause::Tripped(By::Detector(index)) => {
                let owner = snapshot.policy.scope_of(denial.place);
                let rule = owner.and_then(|(scope, dimension)| {
                    snapshot.detector(scope.as_str(), dimension, index)
                });
                let name = rule.map(|rule| detector_name(rule, index));
                self.detector = name.and_then(|name| self.push(name.as_bytes(), usize::MAX));
            }
            _ => {}
        }
        let id = names.id(denial);
        self.id = id.and_then(|id| self.push(id.as_bytes(), usize::MAX));
    }

    /// It was let through because of shadow mode.
    pub fn shadowed(&mut self) {
        self.shadow = true;
    }

    /// The request's own id.
    #[must_use]
    pub fn request_id(&self) -> Option<&[u8]> {
        self.piece(self.request_id)
    }

    /// Tells all of it: to its span, and in a line of the log.
    pub fn tell(&mut self, end: &End, out: Option<(&Access, &mut Vec<u8>)>) {
        if let Some(span) = self.span.take() {
            span.record("verdict", end.verdict.word());
            if let Some(status) = end.status {
                span.record("status", status);
            }
        }
        let Some((log, out)) = out else { return };
        let line = Line {
            at: end.at,
            client: self.client,
            peer: self.peer,
            method: self.piece(self.method).unwrap_or_default(),
            path: self.piece(self.path).unwrap_or_default(),
            query: self.piece(self.query),
            host: self.piece(self.host),
            protocol: self.protocol,
            status: end.status,
            bytes_in: end.bytes_in,
            bytes_out: end.bytes_out,
            whole: end.whole,
            added: end.added,
            route: self.piece(self.route),
            upstream: self.piece(self.upstream),
            verdict: end.verdict.word(),
            scope: self.piece(self.scope),
            limit: self.piece(self.limit),
            detector: self.piece(self.detector),
            id: self.piece(self.id),
            shadow: self.shadow,
            request_id: self.piece(self.request_id),
            trace: self.piece(self.trace),
            agent: self.piece(self.agent),
            referer: self.piece(self.referer),
        };
        line::write(out, log.format, &line);
    }

    fn begin_span(&mut self, parent: Option<ids::TraceParent<'_>>) {
        let id = self.piece(self.request_id).and_then(|id| std::str::from_utf8(id).ok());
        self.span = Some(tracing::info_span!(
            target: "breaker",
            parent: None,
            "request",
            route = tracing::field::Empty,
            verdict = tracing::field::Empty,
            status = tracing::field::Empty,
            request_id = id,
            trace_id = parent.map(|parent| parent.trace),
            parent_id = parent.map(|parent| parent.parent),
            sampled = parent.map(|parent| parent.sampled),
        ));
    }

    fn clear(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        *self = Notes { text, ..Notes::default() };
    }

    fn push(&mut self, words: &[u8], most: usize) -> Piece {
        let from = self.text.len();
        self.text.extend_from_slice(words.get(..most).unwrap_or(words));
        Some((from, self.text.len()))
    }

    fn piece(&self, piece: Piece) -> Option<&[u8]> {
        piece.and_then(|(from, to)| self.text.get(from..to))
    }
}
