//! The Knight replay: what each control would have let through on 1 August 2012, on a virtual clock; it tests the breaker by its public door.
//!
//! Loss is linear at the mean of $115 an order. What is assumed is said in the market. `cargo test -p breaker-core
//! --test knight -- --nocapture --test-threads=1` prints the table.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test that fails says so by a panic"
)]

#[path = "knight/firm.rs"]
mod firm;
#[path = "knight/market.rs"]
mod market;
#[path = "knight/replay.rs"]
mod replay;

use breaker_core::{LiftTo, LimitSpec, Mono, OnFind, Restart, Span, Sweeper};

use firm::{Book, Firm, Keys, Rules, Weight};
use market::{
    BAD, CHILDREN, Child, Children, Flow, HOT, LOSS, PARENTS, PRICE, QUANTITY, ROLLBACK, RUN,
    SECOND, SERVERS, SYMBOLS, at_millis, parents, parents_of, seconds,
};
use replay::{News, Replay};

/// Goal: the stream is the one of the order of the SEC: 4,000,000 children whatever the instant of the rollback,
/// 397 million shares, $6.65bn gross, 154 symbols, 212 parents of which 26 are on the bad server.
#[test]
fn the_market_is_the_one_of_the_order() {
    for rollback in [300, 600, 1_200, 1_800] {
        let mut last = Mono::ZERO;
        let mut by_server = [0_u64; SERVERS];
        let mut shares = 0;
        for child in Children::new(Some(rollback * SECOND)) {
            assert!(child.at >= last && parents_of(child.server).contains(&child.parent));
            last = child.at;
            by_server[child.server] += 1;
            shares += child.shares;
        }
        assert_eq!(by_server.iter().sum::<u64>(), CHILDREN, "rollback at {rollback} s");
        assert_eq!(shares, 397_000_000);
        let most = by_server[..BAD].iter().max().unwrap() - by_server[..BAD].iter().min().unwrap();
        assert!(most <= 1, "the split is even: {by_server:?}");
    }
    assert_eq!(397_000_000 * PRICE, 664_975_000_000, "$6.65bn in cents");
    assert_eq!(market::period(ROLLBACK), 3_300_000, "303.03 orders a second");
    let parents = parents();
    let mut of_symbol = [0; SYMBOLS];
    for parent in &parents {
        of_symbol[parent.symbol] += 1;
    }
    assert_eq!(parents.len(), PARENTS);
    assert_eq!(of_symbol[HOT], 4);
    assert!(of_symbol[1..].iter().all(|&count| count == 1 || count == 2), "{of_symbol:?}");
    assert_eq!(parents_of(BAD).len(), 26);
    assert!(parents[parents_of(BAD)].iter().rev().take(4).all(|parent| parent.symbol == HOT));
    // 26.3 a second, ten times as much in the first minute: 15,780 and 69,432.
    assert_eq!(Flow::new(false).count(), 85_212);
    assert_eq!(Flow::new(true).count(), 263 * 2_700);
}

/// Goal: R0, no control: 4,000,000 orders, $460M, stopped by hand at 10:15.
#[test]
fn r00_none() {
    let book = without_breaker(&mut |_| true);
    tell("R0  none", &book);
    assert_eq!((book.leaks(), book.loss()), (CHILDREN, 460_000_000));
}

/// Goal: R1, a throttle of 100/s per route that comes back by itself ends nothing: it leaks 1.32 million.
///
/// The table says 100/s × (2,700 + 7 × 1,500) s = 1,320,000, the bound. An exact window leaks a little less: when it
/// is full, the next child passes at the first multiple of 3.3 ms from 1 s on, so 100 pass in each 304 children
/// (1.0032 s). Server 8 sends 818,182 = 2,691 × 304 + 118, so 269,200 pass; 454,545 and 454,546 are 1,495 × 304 and
/// 65 or 66, so the others pass 4 × 149,565 + 3 × 149,566. In all 1,316,158, which is 0.3 % under the bound.
#[test]
fn r01_a_throttle_is_no_breaker() {
    let limit = LimitSpec::window(100, seconds(1));
    let firm = Firm::new(Rules { server: vec![limit], ..Rules::default() });
    let book = Replay::new(Some(ROLLBACK)).alone(&firm);
    tell("R1  throttle 100/s per route, window", &book);
    assert_eq!(book.leaks(), 1_316_158);
    assert!(book.leaks() <= 1_320_000 && book.trips.is_empty());
    assert_eq!(book.offered.iter().sum::<u64>(), CHILDREN);
}

/// Goal: R1 with a rate in place of the window: burst and refill leak the table's 100/s to the order.
///
/// Server 8 alone: the burst of 100 and 100 a second of refill over the time of its 818,182 children. The last is
/// at 818,181 × 3.3 ms + 1.2375 ms = 2,699.9985 s after the bell, 2,699.9973 s after the first, so 100 + 269,999.
#[test]
fn r01_the_same_as_a_rate() {
    let limit = LimitSpec::rate(100, seconds(1), 100);
    let firm = Firm::new(Rules { server: vec![limit], ..Rules::default() });
    let book = Replay::new(None).alone(&firm);
    tell("R1  throttle 100/s as a rate, server 8 only", &book);
    assert_eq!(book.leaks(), 270_099);
    assert!(book.trips.is_empty());
}

/// Goal: R2, the 500/s of an exchange's session stay unseen at 303/s: nothing trips, all leaks.
#[test]
fn r02_a_session_limit_does_not_see_it() {
    let limit = LimitSpec::window(500, seconds(1)).tripping();
    let firm = Firm::new(Rules { server: vec![limit], ..Rules::default() });
    let book = Replay::new(Some(ROLLBACK)).alone(&firm);
    tell("R2  500/s per session", &book);
    assert_eq!(book.leaks(), CHILDREN);
    assert!(book.trips.is_empty());
}

/// Goal: R3, 1,000/s for the whole firm is blind to one bad server, and trips when all eight are bad.
///
/// The table counts 1,000 orders from the rollback on: 364,636 at 1,200.4 s. A sliding window also counts what
/// server 8 sent in the second before. It is full when 303.03 × (1 − x) + 2,424.24 × x = 1,000, at x = 0.3286 s:
/// then 363,636 + 797 orders have leaked, 0.06 % fewer than in the table. The exact number is one more, for the
/// phases of the servers.
#[test]
fn r03_a_firm_wide_limit_sees_it_late() {
    let limit = LimitSpec::window(1_000, seconds(1)).tripping();
    let firm = Firm::new(Rules { firm: vec![limit], ..Rules::default() });
    let book = Replay { until: until(1_320), ..Replay::new(Some(ROLLBACK)) }.alone(&firm);
    tell("R3  1,000/s firm only, latched", &book);
    assert_eq!(book.leaks(), 364_433);
    assert_near(book.leaks(), 364_636, 1_000);
    assert_trip(&book, "/firm", 1_200_328, 1_200_330);
}

/// Goal: R4, a dead man's switch watches for silence, and no sender was ever silent: the longest silence of a server that
/// has begun is one period, 3.3 ms.
#[test]
fn r04_a_dead_mans_switch_hears_no_silence() {
    let mut last: [Option<Mono>; SERVERS] = [None; SERVERS];
    let mut longest = Span::ZERO;
    let book = without_breaker(&mut |child| {
        if let Some(before) = last[child.server].replace(child.at) {
            longest = longest.max(child.at.since(before));
        }
        longest < seconds(10)
    });
    tell("R4  dead man's switch of 10 s", &book);
    assert_eq!(longest, Span::from_nanos(3_300_000));
    assert_eq!(book.leaks(), CHILDREN);
}

/// Goal: R5, a loss of $1M polled every 10 s: between 8,696 orders and a poll's time more, whatever the polls' phase.
///
/// The 8,696th order makes it $1,000,040, at 8,695 × 3.3 ms + 1.2375 ms = 28.6947 s. The luckiest poll comes right
/// after; the unluckiest came just before, and looks again 10 s later, 3,030 orders on. Polls on the full ten
/// seconds see it at 30 s.
#[test]
fn r05_a_polled_loss_is_late() {
    let crossed = 8_695 * 3_300_000 + 1_237_500;
    let phases = [
        ("R5  loss of $1M polled every 10 s", 0, 9_091),
        ("R5  the same, luckiest poll", crossed % (10 * SECOND) + 1, 8_696),
        ("R5  the same, unluckiest poll", crossed % (10 * SECOND), 8_695 + 3_031),
    ];
    for (run, phase, leaks) in phases {
        let firm = Firm::new(Rules::default());
        let polls = (0..6).map(|number| Mono::from_nanos(phase + number * 10 * SECOND)).collect();
        let replay = Replay { ticks: polls, until: until(60), ..Replay::new(Some(ROLLBACK)) };
        let book = replay.play(&firm, &mut |firm, book, news| {
            if let News::Tick(now) = news
                && book.loss() >= 1_000_000
            {
                book.trip(firm, "/firm", now);
            }
        });
        tell(run, &book);
        assert_eq!(book.leaks(), leaks);
        assert!((8_696..=11_727).contains(&book.leaks()));
        assert_trip(&book, "/firm", 28_694, 38_695);
    }
}

/// Goal: R6a, the $2M limit of the 33 Account, wired to the order entry by its execution feed: 1,203 orders before it is
/// passed, one more that passes it, $0.14M, 3.97 s.
///
/// 12 hundreds of children are $1,994,925; three more of $1,675 stay below $2M, and the 1,204th goes above. The
/// table books every fill of a looping server. Booking only what exceeds the parents' 200 shares, as the firm did
/// afterwards, comes 52 orders later: two for each of 26 parents.
#[test]
fn r06a_the_position_of_the_33_account() {
    for (run, excess_only, leaks, millis) in [
        ("R6a $2M gross in the 33 Account, by fills", false, 1_204, 3_971),
        ("R6a the same, only what exceeds the parents", true, 1_204 + 52, 4_142),
    ] {
        let firm = Firm::new(Rules::default());
        let replay = Replay { until: until(60), ..Replay::new(Some(ROLLBACK)) };
        let mut position = 0;
        let book = replay.play(&firm, &mut |firm, book, news| {
            if let News::Sent(child) = news {
                let before = book.filled[child.parent] - child.shares;
                let excess = child.shares - child.shares.min(QUANTITY.saturating_sub(before));
                position += PRICE * if excess_only { excess } else { child.shares };
                if position > 200_000_000 {
                    book.trip(firm, "/firm", child.at);
                }
            }
        });
        tell(run, &book);
        assert_eq!(book.leaks(), leaks);
        assert_trip(&book, "/firm", millis, millis + 1);
    }
}

/// Goal: R6a before the send: the same $2M as a budget by weight stops the order that would go above: 1,203.
#[test]
fn r06a_as_a_budget_before_the_send() {
    let limit = LimitSpec::budget(200_000_000).by_weight().tripping();
    let firm = Firm::new(Rules { firm: vec![limit], ..Rules::default() });
    let book = Replay { until: until(60), ..Replay::new(Some(ROLLBACK)) }.alone(&firm);
    tell("R6a $2M gross, as a budget", &book);
    assert_eq!((book.leaks(), book.loss()), (1_203, 138_345));
    assert_trip(&book, "/firm", 3_971, 3_972);
}

/// Goal: R6b, $2bn a day for the firm, twice a normal day: a backstop that leaks $138M, 1,546 s.
///
/// The table divides by $1,662.50, which gives 1,203,008. 12,030 hundreds of children are $1,999,912,312.50 and 52
/// more at $1,675 still fit: 1,203,052, which is 0.004 % more.
#[test]
fn r06b_a_daily_notional_is_a_backstop() {
    let limit = LimitSpec::budget(200_000_000_000).by_weight().tripping();
    let firm = Firm::new(Rules { firm: vec![limit], ..Rules::default() });
    let book = Replay { until: until(1_600), ..Replay::new(Some(ROLLBACK)) }.alone(&firm);
    tell("R6b $2bn gross a day, firm", &book);
    assert_eq!(book.leaks(), 1_203_052);
    assert_near(book.leaks(), 1_203_008, 50);
    assert!(book.cents <= 200_000_000_000);
    assert_trip(&book, "/firm", 1_546_200, 1_546_300);
}

/// Goal: R6c, $6.5M entered in a minute per route: about 3,910 orders of route 8, $0.45M, 12.9 s.
///
/// 39 hundreds are $6,483,506.25, and nine more at $1,675 fit: 3,909.
#[test]
fn r06c_notional_per_minute_and_route() {
    let limit = LimitSpec::window(650_000_000, seconds(60)).by_weight().tripping();
    let firm = Firm::new(Rules { server: vec![limit], ..Rules::default() });
    let book = halted(Some(ROLLBACK)).alone(&firm);
    tell("R6c $6.5M a minute per route, and rollback", &book);
    assert_eq!(book.leaked[BAD], 3_909);
    assert_near(book.leaked[BAD], 3_910, 1);
    assert_trip(&book, "/firm/server8", 12_900, 12_901);
    assert_eq!(book.trips.len(), 8);
    // All lots of 100, or every 25th of 25: odd lots do not fall evenly on the servers.
    assert!(book.leaked[..BAD].iter().all(|leaked| (3_880..=4_001).contains(leaked)));
}

/// Goal: R7, 100/s per route, latched: 100 orders, $11.5k, at 0.33 s; and 800, $92k, if the rollback happens all the same.
#[test]
fn r07_a_route_trips_at_its_hundredth() {
    for (run, rollback, leaks, loss) in [
        ("R7  100/s per route, latched, no rollback", None, 100, 11_500),
        ("R7  the same, and the rollback happens", Some(ROLLBACK), 800, 92_000),
    ] {
        let firm = hundred_a_second();
        let book = halted(rollback).alone(&firm);
        tell(run, &book);
        assert_eq!((book.leaks(), book.loss()), (leaks, loss));
        assert_eq!(book.leaked[BAD], 100);
        // The 101st child: 100 × 3.3 ms, and the phase.
        assert_trip(&book, "/firm/server8", 331, 332);
        assert_eq!(book.trips.len(), if rollback.is_some() { 8 } else { 1 });
        assert!(book.cancels_halted > 100);
    }
}

/// Goal: R7 beside normal flow: the seven healthy servers see no refusal, in the opening burst or after. Once they are
/// bad, what they sent normally in the second before counts too: a few orders fewer leak.
#[test]
fn r07_healthy_routes_see_no_refusal() {
    for tenfold in [false, true] {
        let firm = hundred_a_second();
        let flow = Some(Flow::new(tenfold));
        let seconds = if tenfold { until(120) } else { until(1_320) };
        let book = Replay { flow, until: seconds, ..Replay::new(Some(ROLLBACK)) }.alone(&firm);
        tell(&format!("R7  beside normal flow{}", if tenfold { " tenfold" } else { "" }), &book);
        assert_eq!(book.plain_refused, 0);
        assert!(book.plain_offered > 27_000);
        assert_eq!(book.leaked[BAD], 100);
        assert!(book.leaks() <= 800);
        assert_trip(&book, "/firm/server8", 331, 332);
    }
}

/// Goal: R8, 20/s per symbol: the hot symbol trips at 0.5 s, about 150 orders, $17k, when one symbol's trip stops the firm.
///
/// The four parents of the hot symbol are the last of server 8's 26: its 21st order is order 5 × 26 + 23 of the
/// server. So 152 leak, and the trip is at 152 × 3.3 ms and the phase.
#[test]
fn r08_a_hot_symbol_stops_the_firm() {
    let limit = LimitSpec::window(20, seconds(1)).tripping();
    let firm = Firm::new(Rules { symbol: vec![limit], keys: Keys::All, ..Rules::default() });
    let replay = halted(Some(ROLLBACK));
    let book = replay.play(&firm, &mut |firm, book, news| {
        if let News::Refused(child, denial) = news
            && denial.moved
        {
            book.trip(firm, "/firm", child.at);
        }
    });
    tell("R8  20/s per symbol, stops the firm", &book);
    assert_eq!((book.leaks(), book.loss()), (152, 17_480));
    assert_trip(&book, "/firm/symbol", 502, 503);
    assert_eq!(book.trips.len(), 2, "the symbol, and the firm");
}

/// Goal: R8 where a symbol's trip stops that symbol only: what a narrow scope leaves flowing. It is no run of the table; it
/// shows why a limit per symbol alone is no runaway control, for a symbol with one parent stays at 11/s.
#[test]
fn r08_a_symbol_alone_leaves_the_rest() {
    let limit = LimitSpec::window(20, seconds(1)).tripping();
    let firm = Firm::new(Rules { symbol: vec![limit], keys: Keys::All, ..Rules::default() });
    let book = Replay { until: 120 * SECOND, ..Replay::new(None) }.alone(&firm);
    tell("R8  the same, stops the symbol, 120 s", &book);
    assert_eq!(book.trips.len(), 1);
    // 22 of the 26 parents go on: in each round of 85.8 ms. 120 s are 1,398 rounds and 16 children; the hot symbol had 20.
    assert_eq!(book.leaks(), 1_398 * 22 + 16 + 20);
}

/// Goal: R9a, fills above the parent's quantity trip that parent: the third child of each is the first above, so 3 leak per parent,
/// 636 over all; of server 8 alone 26 × 3 = 78, the table's 80 being 26.5 × 3. Stopping the route with the first such
/// parent leaks 53: two full rounds, and the child that tells.
#[test]
fn r09a_fills_above_the_parents_quantity() {
    for (run, rollback, by_route, leaks) in [
        ("R9a filled above the parent, trips it", None, false, 78),
        ("R9a the same, and the rollback happens", Some(ROLLBACK), false, 636),
        ("R9a filled above the parent, trips the route", None, true, 53),
    ] {
        let firm = Firm::new(Rules { keys: Keys::All, ..Rules::default() });
        let replay = halted(rollback);
        let book = replay.play(&firm, &mut |firm, book, news| {
            if let News::Sent(child) = news
                && book.filled[child.parent] > QUANTITY
            {
                let parent = format!("/firm/parent=P{}", child.parent);
                let path = if by_route { "/firm/server8" } else { &parent };
                book.trip(firm, path, child.at);
            }
        });
        tell(run, &book);
        assert_eq!((book.leaks(), book.loss()), (leaks, leaks * LOSS));
        assert!(book.children.iter().all(|&children| children <= 3));
        // The first third child: 2 × 26 × 3.3 ms, and the phase.
        let first = format!("/firm/parent=P{}", parents_of(BAD).start);
        assert_trip(&book, if by_route { "/firm/server8" } else { &first }, 172, 173);
    }
}

/// Goal: R9b, the check that the SEC named first: shares sent against shares asked for, before the send. The third child
/// of each parent is refused at 0.17 s; two pass for each, which the client asked for, and no other: $0 lost.
#[test]
fn r09b_out_against_in_before_the_send() {
    for (run, rollback, parents) in [
        ("R9b sent above the parent, refused", None, 26),
        ("R9b the same, and the rollback happens", Some(ROLLBACK), 212),
    ] {
        let limit = LimitSpec::budget(QUANTITY).by_weight().tripping();
        let rules = Rules { parent: vec![limit], weight: Weight::Shares, ..Rules::default() };
        let firm = Firm::new(Rules { keys: Keys::All, ..rules });
        let book = halted(rollback).alone(&firm);
        tell_erroneous(run, &book);
        assert_eq!(book.leaks(), parents * 2);
        assert_eq!(book.erroneous(), 0);
        assert!(book.filled.iter().all(|&filled| filled <= QUANTITY));
        assert_eq!(book.trips.len() as u64, parents);
        assert_trip(&book, "/firm/parent", 172, 173);
        // The surplus never got as far as the route: seven servers could not tell that the eighth is bad.
        assert_eq!(book.refused_at[2], 0);
    }
}

/// Goal: at most 20 children per parent, which needs no more than its name: 4,240 orders, $0.49M, 1.7 s.
#[test]
fn r09c_twenty_children_per_parent() {
    let limit = LimitSpec::budget(20).tripping();
    let firm = Firm::new(Rules { parent: vec![limit], keys: Keys::All, ..Rules::default() });
    let book = halted(Some(ROLLBACK)).alone(&firm);
    tell("R9c 20 children per parent", &book);
    assert_eq!((book.leaks(), book.loss()), (4_240, 487_600));
    assert_trip(&book, "/firm/parent", 1_717, 1_718);
}

/// Goal: R10, a kill by hand stops everything at the instant it is made: 303, 3,030, 18,182 or 90,909 orders.
#[test]
fn r10_a_kill_by_hand() {
    let kills = [(1, 303), (10, 3_030), (60, 18_182), (300, 90_909)];
    for (second, leaks) in kills {
        let firm = Firm::new(Rules::default());
        let ticks = vec![Mono::from_nanos(second * SECOND)];
        let replay = Replay { ticks, until: until(second + 60), ..Replay::new(Some(ROLLBACK)) };
        let book = replay.play(&firm, &mut |firm, book, news| {
            if let News::Tick(now) = news {
                book.kill(firm, "/firm", now);
            }
        });
        tell(&format!("R10 kill by hand at {second} s"), &book);
        assert_eq!((book.leaks(), book.loss()), (leaks, leaks * LOSS));
        assert_trip(&book, "/firm", second * 1_000, second * 1_000);
        assert!(book.cancels_halted > 100);
    }
}

/// Goal: R11, the proposed defaults: no erroneous order and $0 if parents are tagged, 100 orders and $11.5k if not. The $2M of
/// the 33 Account is a backstop behind both: $83,000 and $166,000 are booked there at most.
#[test]
fn r11_the_proposed_defaults() {
    for (run, keys, rollback, leaks) in [
        ("R11 defaults, tagged", Keys::All, None, 52),
        ("R11 the same, and the rollback happens", Keys::All, Some(ROLLBACK), 424),
        ("R11 defaults, untagged", Keys::Untagged, None, 100),
        ("R11 the same, and the rollback happens", Keys::Untagged, Some(ROLLBACK), 800),
    ] {
        let firm = defaults(keys, 4_096);
        let book = halted(rollback).alone(&firm);
        // Tagged: the two that each parent asked for. Untagged: 100 of each bad server.
        assert_eq!(book.leaks(), leaks);
        if keys == Keys::All {
            tell_erroneous(run, &book);
            assert_eq!(book.erroneous(), 0);
            assert_trip(&book, "/parents/parent", 172, 173);
            assert!(book.trips.iter().all(|(_, path)| path == "/parents/parent"));
        } else {
            tell(run, &book);
            assert_eq!(book.leaked[BAD], 100);
            assert!(rollback.is_some() || book.loss() < 20_000);
            assert_trip(&book, "/firm/server8", 331, 332);
        }
    }
}

/// Goal: R11's alert before the open: the first reject of a class never seen in this configuration is told at 08:01:00, from server 8, and
/// the 96 that follow until 09:30 are not; rejects of the classes of other days are none. What was seen on other days comes from a
/// save, for the servers were started anew with the new code. At the open, 89 minutes later, the limits hold as without it.
#[test]
fn r11_the_alert_before_the_open() {
    const USUAL: [u16; 3] = [3, 6, 99];
    const POWER_PEG: u16 = 111;
    let clock = |hour: u64, minute: u64| Mono::from_nanos((hour * 60 + minute) * 60 * SECOND);
    let mut saved = None;
    for morning in [false, true] {
        let firm = defaults(Keys::All, 4_096);
        let (mut sweeper, mut moves, mut told) = (Sweeper::new(), Vec::new(), Vec::new());
        if let Some(saved) = &saved {
            let how = (Restart::Clean, seconds(14 * 3_600));
            sweeper.restore(&firm.breaker, &firm.policy, saved, how, clock(6, 0));
        }
        let (first, minutes) = if morning { (clock(6, 0), 210) } else { (clock(8, 0), 480) };
        // On another day all servers see the usual rejects, from the open on; this morning they do from 07:00.
        let seven = clock(7, 0);
        let mut alarms = (0..97).map(|n| clock(8, 1).plus(seconds(n * 55))).peekable();
        for half in 0..minutes * 2 {
            let now = first.plus(seconds(half * 30));
            let usual = now >= seven && half % 4 == 0;
            let reasons = USUAL.iter().filter(|_| usual);
            for (server, &reason) in
                (0..SERVERS).flat_map(|at| reasons.clone().map(move |r| (at, r)))
            {
                firm.rejected(server, reason, now.plus(Span::from_millis(u64::from(reason))));
            }
            while let Some(at) = alarms.next_if(|&at| morning && at < now.plus(seconds(30))) {
                firm.rejected(BAD, POWER_PEG, at);
            }
            let end = now.plus(seconds(30));
            sweeper.sweep(&firm.breaker, &firm.policy, end, &mut moves);
            told.extend(sweeper.findings());
        }
        assert!(moves.is_empty(), "{moves:?}");
        saved = Some(sweeper.save(&firm.breaker, &firm.policy, first.plus(seconds(minutes * 60))));
        if !morning {
            assert!(told.is_empty(), "what was seen in the first six hours: {told:?}");
            continue;
        }
        assert_eq!(alarms.next(), None, "97 rejects before the open");
        let [alert] = told[..] else { panic!("{} alerts: {told:?}", told.len()) };
        assert!(clock(8, 1) <= alert.at && alert.at <= clock(8, 1).plus(seconds(30)), "{alert:?}");
        assert_eq!(alert.found.value, f64::from(POWER_PEG));
        assert_eq!(alert.found.on_find, OnFind::Warn);
        let (scope, _) = firm.policy.scope_of(alert.place).unwrap();
        assert_eq!(scope.as_str(), "/firm/server8");
        let (open, mut book) = (clock(9, 30), Book::new());
        for mut child in Children::new(None).take_while(|child| child.at.as_nanos() < 10 * SECOND) {
            child.at = open.plus(child.at.since(Mono::ZERO));
            book.write(&child, &firm.send(&child), Some(&firm));
        }
        tell_erroneous("R11 defaults, alert at 08:01", &book);
        assert_eq!((book.leaks(), book.erroneous()), (52, 0));
        let ahead = book.trips[0].0.since(alert.at).as_nanos() / (60 * SECOND);
        assert!((88..=89).contains(&ahead), "{ahead} minutes ahead of the first trip");
    }
}

/// Goal: R11 beside normal flow: nobody healthy is refused, and the runaway leaks no more for it.
#[test]
fn r11_no_false_refusal() {
    for (keys, tenfold) in
        [(Keys::All, false), (Keys::All, true), (Keys::Untagged, false), (Keys::Untagged, true)]
    {
        // The tenfold flow has 29,000 parents in ten minutes. Far more room than keys, so that no bucket of 16 fills.
        let firm = defaults(keys, if cfg!(debug_assertions) { 65_536 } else { 262_144 });
        let flow = Some(Flow::new(tenfold));
        let replay =
            Replay { flow, until: until(if tenfold { 120 } else { 300 }), ..Replay::new(None) };
        let book = replay.alone(&firm);
        let name = if tenfold { "tenfold flow" } else { "normal flow" };
        let row = if keys == Keys::All { tell_erroneous } else { tell };
        row(&format!("R11 defaults beside {name}, {keys:?}"), &book);
        assert!(book.plain_offered > 18_000);
        assert_eq!(book.plain_refused, 0);
        assert_eq!(book.leaks(), if keys == Keys::All { 52 } else { 100 });
        assert_eq!(firm.breaker.key_usage().overflowed, 0);
    }
}

/// Goal: an operator who lifts without a mend, 30 s after the trip, gets the second trip as fast as the first: 100 orders
/// more, straight back or over probation (Goldman 2013).
#[test]
fn a_bad_lift_trips_as_fast_again() {
    for to in [LiftTo::Armed, LiftTo::HalfOpen] {
        let limit = LimitSpec::window(100, seconds(1)).tripping();
        let firm = Firm::new(Rules { server: vec![limit], ..Rules::default() });
        let replay =
            Replay { ticks: vec![at_millis(30_331)], until: until(90), ..Replay::new(None) };
        let book = replay.play(&firm, &mut |firm, _, news| {
            if let News::Tick(now) = news {
                firm.lift("/firm/server8", to, now);
            }
        });
        tell(&format!("bad lift at +30 s, to {to:?}"), &book);
        assert_eq!(book.leaks(), 200, "100 each time");
        let [(first, _), (second, _)] = &book.trips[..] else { panic!("{:?}", book.trips) };
        let again = second.since(at_millis(30_331));
        // Within a child of the time that the first trip took.
        assert!(again.as_nanos() <= first.as_nanos() + 3_300_000, "{again:?}");
    }
}

/// A firm whose servers trip above 100/s.
fn hundred_a_second() -> Firm {
    let limit = LimitSpec::window(100, seconds(1)).tripping();
    Firm::new(Rules { server: vec![limit], ..Rules::default() })
}

/// Goal: a leak just under the rate is found by the longer window: 99/s pass 100/s for ever, and trip 4,000 a minute at 40.4 s.
#[test]
fn a_slow_leak_meets_the_minute() {
    for (longer, leaks) in [(None, 99 * 120), (Some(LimitSpec::window(4_000, seconds(60))), 4_000)]
    {
        let shorter = Some(LimitSpec::window(100, seconds(1)));
        let both = [shorter, longer].into_iter().flatten().map(LimitSpec::tripping);
        let firm = Firm::new(Rules { server: both.collect(), ..Rules::default() });
        let mut book = Book::new();
        for mut child in Children::new(None).take(99 * 120) {
            child.at = Mono::from_nanos(child.number * SECOND / 99);
            book.write(&child, &firm.send(&child), Some(&firm));
        }
        tell("slow leak of 99/s for two minutes", &book);
        assert_eq!(book.leaks(), leaks);
        if leaks == 4_000 {
            assert_trip(&book, "/firm/server8", 40_404, 40_405);
        }
    }
}

/// The limits that the field suggests: 100/s, 4,000 and $6.5M a minute per server, 20/s per symbol, the quantity and
/// 20 children per parent.
fn defaults(keys: Keys, room: u32) -> Firm {
    let done = seconds(600);
    Firm::new(Rules {
        server: vec![
            LimitSpec::window(100, seconds(1)).tripping(),
            LimitSpec::window(4_000, seconds(60)).tripping(),
            LimitSpec::window(650_000_000, seconds(60)).by_weight().tripping(),
        ],
        symbol: vec![LimitSpec::window(20, seconds(1)).tripping()],
        out_against_in: vec![
            LimitSpec::budget(1_000_000).by_weight().tripping().idle(done),
            LimitSpec::budget(20).tripping().idle(done),
        ],
        alerts: true,
        keys,
        room,
        ..Rules::default()
    })
}

/// Counts the stream with no breaker in it, while somebody looks on who could stop it.
fn without_breaker(watch: &mut dyn FnMut(&Child) -> bool) -> Book {
    let mut book = Book::new();
    for child in Children::new(Some(ROLLBACK)) {
        if !watch(&child) {
            break;
        }
        book.write(&child, &Ok(()), None);
    }
    book
}

/// A run that is halted within a minute, and once more within a minute of the rollback: a debug build offers nothing
/// in between, and stops soon after.
fn halted(rollback: Option<u64>) -> Replay {
    let dull = if cfg!(debug_assertions) { 60 * SECOND..1_199 * SECOND } else { 0..0 };
    Replay { until: until(1_260), dull, ..Replay::new(rollback) }
}

/// Until when to look, in seconds. A trip and a kill latch: in a debug build, which is slow, a short look after it
/// must do; a release build plays every run to the end.
fn until(second: u64) -> u64 {
    if cfg!(debug_assertions) { second * SECOND } else { RUN }
}

fn assert_near(value: u64, table: u64, within: u64) {
    assert!(value.abs_diff(table) <= within, "{value}, and {table} in the table");
}

/// The first trip, by milliseconds.
fn assert_trip(book: &Book, scope: &str, from: u64, to: u64) {
    let (at, path) = book.trips.first().expect("it trips");
    assert_eq!(path, scope);
    assert!((at_millis(from)..=at_millis(to)).contains(at), "{at:?}");
}

/// Prints one row of the table, and checks what holds in every run.
fn tell(run: &str, book: &Book) {
    tell_loss(run, book, book.loss());
}

/// The same where only what nobody asked for is a loss: the children that filled their parents were wanted.
fn tell_erroneous(run: &str, book: &Book) {
    tell_loss(run, book, book.erroneous() * LOSS);
}

fn tell_loss(run: &str, book: &Book, loss: u64) {
    book.check();
    let tripped = match book.trips.first() {
        Some((at, _)) => format!("{:.3} s", at.as_nanos() as f64 / 1e9),
        None => "never".into(),
    };
    let leaks = book.leaks();
    println!("{run:<46} {leaks:>9} leaked {loss:>11} $ lost, trip {tripped:>11}");
}
