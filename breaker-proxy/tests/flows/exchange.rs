//! One exchange with an upstream, attacked from either side; nothing here is limited or killed.

use super::support::h2::{Event, H2, h2_get, h2_half_upload, h2_reset, h2_window};
use super::support::upstream::{Serving, Upstream};
use super::support::wire::{End, Wire};
use super::support::{Dice, Setup};
use breaker_core::Span;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Goal: an upload whose HTTP/2 stream its client takes back never looks whole, whatever code it gives: a reset without an
/// error, too, ends the body in the middle.
#[test]
fn a_reset_without_an_error_made_an_upload_look_whole() {
    for code in [0, 8, 1] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send_bytes(&h2_half_upload());
        let mut exchange = upstream.accept();
        exchange.head();
        assert_eq!(exchange.chunk(), Ok(Some(b"half".to_vec())));
        client.send_bytes(&h2_reset(code));
        assert_eq!(exchange.chunk(), Err(Vec::new()), "code {code}");
        drop(client);
        assert_eq!(proxy.finish()["upstream_errors"], 0, "code {code}");
    }
}

/// Goal: however many idle connections an upstream has ended at once, none of them is taken for a living one.
#[test]
fn one_of_many_ended_connections_was_taken_for_a_living_one() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut calls = Vec::new();
    for _ in 0..300 {
        let mut client = proxy.client();
        client.send("GET /many HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        calls.push((client, exchange));
    }
    for (client, exchange) in &mut calls {
        exchange.reply("ok");
        assert_eq!(client.answer().text(), "ok");
    }
    drop(calls);
    // What has ended shows once the worker has looked at its sockets again.
    proxy.rest();
    let mut client = proxy.client();
    client.send("POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    let mut exchange = upstream.accept();
    assert_eq!(exchange.request().body, b"hi");
    exchange.reply("alive");
    assert_eq!(client.answer().text(), "alive");
    assert_eq!(proxy.finish()["upstream_errors"], 0);
}

/// Goal: when the proxy stops, its idle upstream connections end with it.
#[test]
fn idle_connections_outlived_their_worker() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.reply("ok");
    assert_eq!(client.answer().text(), "ok");
    drop(client);
    proxy.finish();
    exchange.assert_ends();
}

/// Goal: an upstream that stops taking an upload is at fault, not the client that would send: 504, and counted against it.
#[test]
fn a_frozen_upstream_was_blamed_on_its_client() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"300ms\"", ..Setup::route(upstream.address(), "") }
            .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let mut frozen = upstream.accept();
    frozen.head();
    let mut writer = client.writer();
    let sender = thread::spawn(move || {
        for _ in 0..1_000 {
            writer.send_bytes(&[b'x'; 64 * 1024]);
        }
    });
    let answer = client.answer();
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream-timeout"));
    drop(client);
    sender.join().unwrap();
    drop(frozen);
    assert_eq!(proxy.finish()["upstream_errors"], 1);
}

/// Goal: an upstream that sends a body where none can be, at once or later, poisons nobody.
#[test]
fn a_body_where_none_can_be_poisons_nobody() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let length = poison.len();
    for (method, words) in [
        ("HEAD", format!("200 OK\r\nContent-Length: {length}")),
        ("GET", format!("204 No Content\r\nContent-Length: {length}")),
        ("GET", format!("304 Not Modified\r\nContent-Length: {length}")),
        ("GET", "204 No Content\r\nTransfer-Encoding: chunked".to_owned()),
        ("GET", "200 OK\r\nContent-Length: 0".to_owned()),
    ] {
        for at_once in [true, false] {
            let upstream = Upstream::start();
            let proxy = Setup::route(upstream.address(), "").start();
            let mut client = proxy.client();
            client.send(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            let mut exchange = upstream.accept();
            exchange.request();
            if at_once {
                exchange.send(&format!("HTTP/1.1 {words}\r\n\r\n{poison}"));
                client.head();
            } else {
                exchange.send(&format!("HTTP/1.1 {words}\r\n\r\n"));
                client.head();
                exchange.send(poison);
                proxy.rest();
            }
            client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut next = upstream.accept();
            assert_eq!(next.request().head.word(1), "/next");
            next.reply("own");
            assert_eq!(client.answer().text(), "own", "{method} {words} {at_once}");
            proxy.finish();
        }
    }
}

/// Goal: what an upstream says before it was asked anything is no answer: its connection is dropped once it shows, and who
/// comes next gets their own.
#[test]
fn an_answer_to_nobody_is_given_to_nobody() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.reply("one");
    assert_eq!(client.answer().text(), "one");
    exchange.send("HTTP/1.1 100 Continue\r\n\r\n");
    proxy.rest();
    client.send("GET /two HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut next = upstream.accept();
    next.request();
    next.reply("two");
    assert_eq!(client.answer().text(), "two");
    exchange.assert_ends();
    proxy.finish();
}

/// Goal: preliminary answers without end are no way to hold a call or to fill memory, in whatever pieces they come.
#[test]
fn preliminary_answers_have_an_end() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    for _ in 0..32 {
        exchange.send("HTTP/1.1 102 Processing\r\n\r\n");
        // The worker has looked: each comes to it alone.
        proxy.rest();
    }
    let answer = client.try_final_answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream-broken"));
    assert_eq!(proxy.finish()["upstream_errors"], 1);
}

/// Goal: lines and trailers of chunks without end are a broken answer, never a whole one.
#[test]
fn chunks_without_end_are_broken() {
    let long = "x".repeat(100_000);
    for more in [
        format!("1;{long}\r\na\r\n0\r\n\r\n"),
        format!("0\r\nx-long: {long}\r\n\r\n"),
        format!("0\r\n{}\r\n", "x: 1\r\n".repeat(1000)),
        "0\r\nno field\r\n\r\n".to_owned(),
        "0\r\n\x01: a\r\n\r\n".to_owned(),
        "10000000000000004\r\nmore\r\n0\r\n\r\n".to_owned(),
        "-4\r\nmore\r\n0\r\n\r\n".to_owned(),
        "4\nmore\n0\n\n".to_owned(),
        "4\r\nmoremore\r\n0\r\n\r\n".to_owned(),
    ] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        let head = client.head();
        exchange.send(&more);
        let (body, end) = client.body(&head, false);
        let told = more.get(..20.min(more.len()));
        assert!(body.starts_with(b"half") && end == End::Broken, "{told:?}: {end:?}");
        exchange.rest();
        assert_eq!(proxy.finish()["upstream_errors"], 1, "{told:?}");
    }
}

/// Goal: an upload goes on while its answer already flows, and each arrives whole.
#[test]
fn both_directions_flow_at_once() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n0\r\n");
    let mut exchange = upstream.accept();
    exchange.head();
    exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(exchange.chunk(), Ok(Some(b"0".to_vec())));
    client.head();
    for round in 1..=9 {
        client.send(&format!("1\r\n{round}\r\n"));
        let heard = exchange.chunk().unwrap().unwrap();
        assert_eq!(heard, round.to_string().as_bytes());
        exchange.send(&format!("1\r\n{round}\r\n"));
        assert_eq!(client.chunk(), Ok(Some(heard)));
    }
    client.send("0\r\n\r\n");
    assert_eq!(exchange.chunk(), Ok(None));
    exchange.send("0\r\n\r\n");
    assert_eq!(client.chunk(), Ok(None));
    // Both were whole: the connection serves on.
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(exchange.request().head.word(1), "/next");
    exchange.reply("next");
    assert_eq!(client.answer().text(), "next");
    proxy.finish();
}

/// Goal: an upstream that ends its side in the middle of an upload, with or without an answer, is told from one that answered.
#[test]
fn an_end_in_the_middle_of_an_upload() {
    for (said, status) in [
        ("", 502),
        ("HTTP/1.1 413 Enough\r\nContent-Length: 3\r\n\r\nno.", 413),
        ("HTTP/1.1 413 Enough\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno.", 413),
        ("HTTP/1.1 413 Enough\r\n\r\nno.", 413),
    ] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nstart");
        let mut exchange = upstream.accept();
        exchange.head();
        exchange.exactly(5).unwrap();
        exchange.send(said);
        drop(exchange);
        let answer = client.answer();
        assert_eq!(answer.status(), status, "{said:?}");
        if status == 413 {
            assert_eq!(answer.text(), "no.", "{said:?}");
        }
        drop(client);
        let accounts = proxy.finish();
        assert_eq!(accounts["upstream_errors"], u64::from(status == 502), "{said:?}");
    }
}

/// Goal: an answer whose end is that of the connection (HTTP/1.0 knows no chunks) ends by a reset if it broke off, whoever broke
/// it: a plain end would make it look whole.
#[test]
fn a_broken_answer_looked_whole_to_an_old_client() {
    for cut in [false, true] {
        let upstream = Upstream::start();
        let proxy = Setup::route(upstream.address(), "").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
        let mut exchange = upstream.accept();
        exchange.request();
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        assert_eq!(client.head().word(1), "200");
        if cut {
            proxy.cut("/");
        } else {
            drop(exchange);
        }
        assert!(client.ends_by_reset(), "cut: {cut}");
        proxy.finish();
    }
    // And one that is whole does not.
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    client.head();
    exchange.send("0\r\n\r\n");
    assert!(!client.ends_by_reset());
    proxy.finish();
}

/// Goal: of a call that was given up nothing more goes out: what the system holds of it and its upstream did not take is thrown
/// away. The client has its 504, and a kill finds the call no more.
#[test]
fn a_call_that_was_given_up_went_out_after_a_kill() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"300ms\"", ..Setup::route(upstream.address(), "") }
            .start();
    let body = vec![b'x'; 100_000_000];
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    let mut frozen = upstream.accept();
    let mut writer = client.writer();
    let sender = thread::spawn(move || writer.send_bytes(&body));
    assert_eq!(client.answer().status(), 504);
    drop(client);
    sender.join().unwrap();
    proxy.settled();
    proxy.cut("/");
    let here = frozen.at_hand();
    assert!(here > 0);
    assert_eq!(frozen.rest().len(), here);
    proxy.finish();
}

/// Goal: a switch of protocols that nobody asked for is a failure to the gates, too: a probe that meets one trips again.
#[test]
fn an_unasked_switch_passed_a_probe() {
    let upstream = Upstream::start();
    let recover = "recover = { probes = 1, after = \"5s\", at_most = \"12s\" }";
    let proxy = Setup::route(upstream.address(), recover).start_clocked();
    proxy.order("trip", "/default/api", r#"{"reason":"test"}"#);
    let wait = proxy.get("").json()["wait_ms"].as_u64().unwrap();
    proxy.advance(Span::from_millis(wait));
    let mut probe = proxy.client();
    probe.send("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n");
    assert_eq!(probe.answer().status(), 502);
    assert_eq!(proxy.state_of("/default/api"), "tripped");
    proxy.finish();
}

/// Goal: an HTTP/2 client that stopped reading and is given up is no fault of the upstream, not even when it reads again.
#[test]
fn a_client_that_reads_again_was_a_fault_of_the_upstream() {
    let upstream = Upstream::start();
    let proxy =
        Setup { deadlines: "body_idle = \"200ms\"", ..Setup::route(upstream.address(), "") }
            .start();
    let mut client = proxy.client();
    client.send_bytes(&h2_get());
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    exchange.fill(&[b'x'; 64 * 1024]);
    exchange.assert_ends();
    client.send_bytes(&h2_window(1, 1 << 20));
    client.send_bytes(&h2_window(0, 1 << 20));
    assert_eq!(proxy.settled()["upstream_errors"], 0);
    drop(client);
    proxy.finish();
}

/// Goal: lengths at the very end of what a number holds are lengths: no panic, and an answer that never looks whole.
#[test]
fn lengths_without_measure_are_only_lengths() {
    let most = u64::MAX;
    for length in [most, most - 1, most - 2, most - 3, 1 << 63] {
        for http2 in [false, true] {
            let upstream = Upstream::start();
            let proxy = Setup::route(upstream.address(), "").start();
            let client = http2.then(|| H2::connect(proxy.data()));
            let stream = client.as_ref().map(|client| client.get("/"));
            let mut wire = proxy.client();
            if !http2 {
                wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            }
            let mut exchange = upstream.accept();
            exchange.request();
            exchange.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhalf"));
            drop(exchange);
            match stream {
                Some(stream) => while !matches!(stream.next(), Event::Broken) {},
                None => drop(wire.rest()),
            }
            drop((wire, client));
            // An HTTP/2 client that cannot hold the number takes its stream back, perhaps before the upstream's end was seen.
            let takes_back = http2 && length.to_string().len() > 19;
            let errors = proxy.finish()["upstream_errors"].as_u64();
            assert!(errors == Some(1) || (takes_back && errors == Some(0)), "{length} {errors:?}");
        }
    }
}

/// Goal: a client that reads nothing before it has sent everything gets its answer from an upstream that answers meanwhile, be
/// both longer than all that lies between them holds.
#[test]
fn an_upload_stood_still_while_its_answer_was_not_read() {
    const LENGTH: usize = 100_000_000;
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n"));
    let mut exchange = upstream.accept();
    exchange.head();
    let mut writer = exchange.writer();
    let down = thread::spawn(move || {
        writer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        writer.send_bytes(&vec![b'y'; LENGTH]);
    });
    let up = thread::spawn(move || {
        let body = exchange.exactly(LENGTH).map(|body| body.len());
        (exchange, body)
    });
    client.send_bytes(&vec![b'x'; LENGTH]);
    let (mut exchange, body) = up.join().unwrap();
    assert_eq!(body, Ok(LENGTH));
    let answer = client.answer();
    assert_eq!((answer.body.len(), answer.end), (LENGTH, End::Whole));
    down.join().unwrap();
    // Both were whole: the connection serves on.
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(exchange.request().head.word(1), "/next");
    exchange.reply("next");
    assert_eq!(client.answer().text(), "next");
    proxy.finish();
}

/// Goal: while both directions flow, a halt breaks the upload off and its answer with it, read or not; so does an upload that its
/// client breaks off. Neither side takes what it has for whole.
#[test]
fn what_flows_both_ways_ends_both_ways() {
    for halt in [true, false] {
        for http2 in [true, false] {
            let upstream = Upstream::start();
            let proxy = Setup::route(upstream.address(), "").start();
            let mut client = proxy.client();
            if http2 {
                client.send_bytes(&h2_half_upload());
            } else {
                client.send(
                    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
                );
            }
            let mut exchange = upstream.accept();
            exchange.head();
            assert_eq!(exchange.chunk(), Ok(Some(b"half".to_vec())));
            exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
            if !http2 {
                assert_eq!(client.head().word(1), "200");
            }
            if halt {
                proxy.halt("/");
            } else if http2 {
                client.send_bytes(&h2_reset(0));
            } else {
                client.send("no chunk\r\n");
            }
            assert_eq!(exchange.chunk(), Err(Vec::new()), "{halt} {http2}");
            if !http2 {
                let rest = client.rest();
                assert!(!rest.ends_with(b"0\r\n\r\n"), "{halt}: {rest:?}");
            }
            drop(client);
            let accounts = proxy.finish();
            assert_eq!(accounts["upstream_errors"], 0, "{halt} {http2}");
            assert_eq!(accounts["severed"], u64::from(halt), "{halt} {http2}");
        }
    }
}

/// What an upstream of bad manners makes of one request; false: it ends the connection.
fn misbehave(wire: &mut Wire, id: &str, dice: &mut Dice) -> bool {
    let length = id.len();
    let good = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{id}");
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    match dice.roll(11) {
        0 => wire.send(&format!("{good}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")),
        1 => {
            wire.send(chunked);
            for letter in id.chars() {
                wire.send(&format!("1\r\n{letter}\r\n"));
            }
            wire.send("0\r\n\r\n");
        }
        2 => {
            let cut = dice.roll(good.len());
            wire.send(&good[..cut]);
            return false;
        }
        3 => {
            wire.send(&format!("{chunked}2\r\npo\r\n"));
            return false;
        }
        4 => wire.send(&format!("HTTP/1.1 103 Early\r\nlink: poison\r\n\r\n{good}")),
        5 => return false,
        6 => {
            wire.send(&format!("HTTP/1.1 200 OK\r\n\r\n{id}"));
            return false;
        }
        7 => {
            wire.send(&good);
            return false;
        }
        8 => {
            let (start, rest) = good.split_at(dice.roll(good.len()));
            wire.send(start);
            thread::yield_now();
            wire.send(rest);
        }
        _ => wire.send(&good),
    }
    true
}

/// What a client of bad manners does: it leaves, now or later, or reads its answer, which must be its own.
fn visit(address: SocketAddr, seed: u64, calls: usize) {
    let mut dice = Dice::new(seed * 7919 + 1);
    let mut wire = Wire::connect(address);
    for number in 0..calls {
        let id = format!("id-{seed}-{number}-own");
        let text = match dice.roll(3) {
            0 => format!("GET /{id} HTTP/1.1\r\nhost: a\r\n\r\n"),
            1 => format!("POST /{id} HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"),
            _ => format!(
                "POST /{id} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
            ),
        };
        let leaves = dice.roll(8);
        if leaves == 0 {
            wire.send(&text[..dice.roll(text.len())]);
            wire = Wire::connect(address);
            continue;
        }
        wire.send(&text);
        if leaves == 1 {
            wire = Wire::connect(address);
            continue;
        }
        let Some(answer) = wire.try_final_answer() else {
            wire = Wire::connect(address);
            continue;
        };
        let whole = answer.end == End::Whole;
        match answer.status() {
            200 if whole => assert_eq!(answer.text(), id),
            200 => {}
            status => assert_eq!(status, 502),
        }
        if !whole {
            wire = Wire::connect(address);
        }
    }
}

/// Goal: whatever upstreams and clients do, and whenever they leave: who gets a whole answer gets their own, nothing hangs,
/// nothing panics, and the accounts balance.
#[test]
fn bad_manners_on_both_sides_mix_nothing_up() {
    let upstream = Upstream::start();
    let address = upstream.address();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let host = thread::spawn(move || {
        let mut seed = 0;
        let mut guests = Vec::new();
        // ordering: relaxed, a flag on its own.
        while !stopped.load(Ordering::Relaxed) {
            let Some(mut wire) = upstream.try_accept() else { continue };
            seed += 1;
            let mut dice = Dice::new(seed * 104_729);
            guests.push(thread::spawn(move || {
                while let Some(request) = wire.try_request() {
                    let id = request.head.word(1).trim_start_matches('/').to_owned();
                    if !misbehave(&mut wire, &id, &mut dice) {
                        break;
                    }
                }
            }));
        }
        guests
    });
    let proxy = Setup { workers: 2, ..Setup::route(address, "") }.start();
    let data = proxy.data();
    let clients: Vec<_> =
        (0..8).map(|seed| thread::spawn(move || visit(data, seed, 150))).collect();
    for client in clients {
        client.join().unwrap();
    }
    proxy.finish();
    // ordering: relaxed, see above.
    stop.store(true, Ordering::Relaxed);
    for guest in host.join().unwrap() {
        guest.join().unwrap();
    }
}

/// Goal: names that a server may take for a field of the framing or of the connection pass no more than the field itself.
#[test]
fn a_framing_field_in_another_spelling_does_not_pass() {
    let upstream = Serving::ok();
    let proxy = Setup::route(upstream.address(), "").start();
    let answer = proxy.get(
        "Transfer_Encoding: chunked\r\nContent_Length: 7\r\nProxy_Connection: x\r\nX_Own: 1\r\n",
    );
    assert_eq!(answer.status(), 200);
    let heard = upstream.heard();
    let head = &heard[0].head;
    for name in ["transfer_encoding", "content_length", "proxy_connection"] {
        assert_eq!(head.field(name), None, "{name}");
    }
    assert_eq!(head.field("x_own"), Some("1"));
    proxy.finish();
}
