//! One HTTP/2 stream: its request to its answer, and the answer down to the client; it holds no connection.
//!
//! Of an answer only so much goes to the connection as the client has made room for. The rest is held here, one piece at most, where a
//! kill finds it: a stream that is reset takes with it what waits for the socket.

use super::Worker;
use super::alarm::Alarm;
use super::answer::Answer;
use super::body::Reply;
use super::handle::handle;
use super::http2::Open;
use super::pace::Pace;
use super::peer::Peer;
use super::room::{Piece, Room, Share};
use super::upstream::duration;
use super::visit::{Verdict, Visit};
use crate::wire::answer::Passing;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// What the streams of one connection share.
pub struct Shared {
    /// Their worker.
    pub worker: Rc<Worker>,
    /// Their client.
    pub peer: Rc<Peer>,
    /// What their answers have in memory.
    pub room: Rc<Room>,
}

/// Takes one request to the end of its answer.
pub async fn serve(
    shared: Rc<Shared>,
    _open: Open,
    request: Request<RecvStream>,
    respond: SendResponse<Piece>,
) {
    let worker = &shared.worker;
    let respond = Rc::new(RefCell::new(Some(respond)));
    let answer = {
        let (peer, respond) = (Rc::clone(&shared.peer), &respond);
        let mut answer = pin!(handle(Rc::clone(worker), peer, request, Rc::clone(respond)));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            // The client took it back, or left.
            Poll::Pending => match &mut *respond.borrow_mut() {
                Some(respond) => respond.poll_reset(cx).map(|_| None),
                None => Poll::Pending,
            },
        })
        .await
    };
    // Whoever sends the rest of the request still knows the stream, and must tell it nothing from here on.
    let (Some((answer, visit)), Some(mut respond)) = (answer, respond.take()) else { return };
    let ends = answer.body.is_end_stream();
    let (head, reply) = head(worker, answer);
    let begun = respond.send_response(head, ends);
    let Ok(client) = begun else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    if ends {
        visit.course().is_whole();
    } else {
        let mut sending = Sending::new(&shared, client, reply, &visit);
        poll_fn(|cx| sending.poll_timed(cx)).await;
    }
}

/// The head of an answer.
fn head(worker: &Worker, answer: Answer) -> (Response<()>, Reply) {
    let Answer { status, fields, told, body } = answer;
    let mut head = Response::new(());
    *head.status_mut() = status;
    let mut fields = match fields {
        Passing::Map(fields) => fields,
        // Lines are asked for where they are sent as they are.
        Passing::Lines { .. } => HeaderMap::new(),
    };
    let length = told.or_else(|| body.size_hint().exact().filter(|_| !body.is_end_stream()));
    if let Some(length) = length {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if !fields.contains_key(header::DATE) {
        worker.dated(|date| {
            if let Ok(date) = HeaderValue::from_str(date) {
                fields.insert(header::DATE, date);
            }
        });
    }
    *head.headers_mut() = fields;
    (head, body)
}

/// The body of an answer on its way to the client.
struct Sending<'s> {
    worker: &'s Worker,
    visit: &'s Visit,
    client: SendStream<Piece>,
    /// It stays until all of it was written, so that a kill finds the call as long as something of it is to be sent.
    reply: Reply,
    share: Rc<Share>,
    /// What the client has made no room for yet.
    held: Bytes,
    /// Nothing more comes.
    ended: bool,
    /// Bytes that went to the connection.
    sent: u64,
    pace: Pace,
    /// Set while the client is waited for.
    alarm: Option<Alarm>,
    waits: bool,
}

impl<'s> Sending<'s> {
    fn new(
        shared: &'s Shared,
        client: SendStream<Piece>,
        reply: Reply,
        visit: &'s Visit,
    ) -> Sending<'s> {
        let plane = shared.worker.plane;
        let idle = duration(plane.deadlines.body_idle);
        Sending {
            worker: &shared.worker,
            visit,
            client,
            reply,
            share: Share::new(&shared.room),
            held: Bytes::new(),
            ended: false,
            sent: 0,
            pace: Pace::new(idle, plane.bounds.download_rate),
            alarm: None,
            waits: false,
        }
    }

    /// As [`Sending::poll`], and says whose turn it is: while this rests, the client's or the upstream's.
    fn poll_timed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.visit.resume();
        let sent = self.poll(cx);
        if sent.is_pending() {
            self.visit.pause();
        }
        sent
    }

    /// Ready once all of it was written, or it broke off.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The client does not want it any more, or has left.
        if self.client.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        // Where the answer itself is not asked below, nobody else would say so.
        let room = self.share.room();
        let waits = !self.held.is_empty() || room.is_queue_full() || room.is_hold_full();
        if (self.ended || waits) && self.reply.is_severed() {
            self.visit.course().ends(Verdict::Severed);
            return self.reset(Reason::INTERNAL_ERROR);
        }
        loop {
            if self.ended {
                ready!(self.share.poll_gone(cx));
                self.visit.course().is_whole();
                return Poll::Ready(());
            }
            if self.share.room().is_queue_full() {
                return self.poll_room(cx);
            }
            if !self.held.is_empty() {
                match self.poll_pass(cx) {
                    Poll::Pending => return self.poll_late(cx),
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => return Poll::Ready(()),
                }
            }
            if !ready!(self.poll_next(cx)) {
                return Poll::Ready(());
            }
        }
    }

    /// Waits until the connection has room again.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.worker.shard.full_connections.up();
        self.share.room().wake_by(cx);
        Poll::Pending
    }

    /// Hands on what the client has made room for; false: the stream has ended.
    fn poll_pass(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.client.reserve_capacity(self.held.len());
        let mut room = self.client.capacity();
        if room == 0 {
            room = match ready!(self.client.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Poll::Ready(false),
            };
        }
        let data = self.held.split_to(room.min(self.held.len()));
        self.share.hold(self.held.len());
        self.visit.course().took_away(data.len());
        self.sent = self.sent.wrapping_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if std::mem::take(&mut self.waits) {
            self.pace.look(self.sent, false, Instant::now());
            self.reply.is_taken();
        }
        self.ended = self.held.is_empty() && self.reply.is_end_stream();
        Poll::Ready(self.client.send_data(self.share.piece(data), self.ended).is_ok())
    }

    /// Takes the next piece of the answer; false: the stream has ended.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let crowded = self.share.room().is_hold_full();
        if crowded {
            self.client.reserve_capacity(1);
            if self.client.capacity() == 0 {
                match self.client.poll_capacity(cx) {
                    Poll::Pending => return self.poll_room(cx).map(|()| true),
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(false),
                }
            }
        }
        let Poll::Ready(frame) = Pin::new(&mut self.reply).poll_frame(cx) else {
            if crowded {
                // What is not used is the other streams'.
                self.client.reserve_capacity(0);
            }
            return Poll::Pending;
        };
        match frame.map(|frame| frame.map(hyper::body::Frame::into_data)) {
            Some(Ok(Ok(data))) if data.is_empty() => {
                self.ended = self.reply.is_end_stream();
                Poll::Ready(!self.ended || self.client.send_data(Piece::nothing(), true).is_ok())
            }
            Some(Ok(Ok(data))) => {
                self.share.hold(data.len());
                self.held = data;
                Poll::Ready(true)
            }
            Some(Ok(Err(frame))) => {
                self.ended = true;
                if self.reply.broke_off() {
                    self.visit.course().ended_early();
                }
                let trailers = frame.into_trailers().unwrap_or_default();
                Poll::Ready(self.client.send_trailers(trailers).is_ok())
            }
            Some(Err(_)) => {
                self.visit.course().ended_early();
                self.reset(Reason::INTERNAL_ERROR).map(|()| false)
            }
            None => {
                self.ended = true;
                Poll::Ready(self.client.send_data(Piece::nothing(), true).is_ok())
            }
        }
    }

    /// Ends the stream if its client has made no room for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waits = true;
        let Some(until) = self.pace.look(self.sent, true, Instant::now()) else {
            return Poll::Pending;
        };
        if !self.alarm.get_or_insert_with(|| Alarm::new(until)).passed(until, cx) {
            return Poll::Pending;
        }
        self.worker.shard.stalled_clients.up();
        self.reset(Reason::CANCEL)
    }

    /// Ends the stream now; what of it waits for the socket is thrown away.
    fn reset(&mut self, reason: Reason) -> Poll<()> {
        self.client.send_reset(reason);
        Poll::Ready(())
    }
}
