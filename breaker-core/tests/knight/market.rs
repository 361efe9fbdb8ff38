//! The orders of 1 August 2012 as a deterministic stream: who sends which child order when. It knows no limit and no breaker.
//!
//! From the order of the SEC (34-70694): eight servers, 212 parents over 154 symbols, 45 minutes, over 4 million
//! executions of over 397 million shares, $460M lost. Assumed, for the order is silent: the even split over
//! servers, the rollback at 1,200 s, one child order for each execution, one price, and 200 shares to a parent.
//!
//! All numbers are integers: nanoseconds since the opening bell, shares, cents.

use std::ops::Range;

use breaker_core::{Mono, Span};

pub(crate) const SECOND: u64 = 1_000_000_000;
/// From the bell, 09:30, until everything was stopped by hand at 10:15.
pub(crate) const RUN: u64 = 2_700 * SECOND;
/// When the seven good servers were rolled back, and turned bad too.
pub(crate) const ROLLBACK: u64 = 1_200 * SECOND;
pub(crate) const SERVERS: usize = 8;
/// The server that missed the deployment: number 8.
pub(crate) const BAD: usize = 7;
pub(crate) const PARENTS: usize = 212;
pub(crate) const SYMBOLS: usize = 154;
pub(crate) const ACCOUNTS: usize = 20;
/// Child orders in all, if nothing stops them.
pub(crate) const CHILDREN: u64 = 4_000_000;
/// Cents a share: $6.65bn of gross position over 397 million shares.
pub(crate) const PRICE: u64 = 1_675;
/// Shares that each parent asked for.
pub(crate) const QUANTITY: u64 = 200;
/// Dollars lost for each leaked child: $460M over 4.0 million.
pub(crate) const LOSS: u64 = 115;
/// The symbol like EXC, with four parents on the bad server.
pub(crate) const HOT: usize = 0;

/// One parent order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) symbol: usize,
    pub(crate) account: usize,
}

/// One child order of a defective server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) at: Mono,
    pub(crate) server: usize,
    pub(crate) parent: usize,
    /// Its number in the firm, from 0.
    pub(crate) number: u64,
    pub(crate) shares: u64,
}

/// The children of the defective servers, in the order of time.
#[derive(Clone)]
pub(crate) struct Children {
    rollback: Option<u64>,
    /// Between two children of one server.
    period: u64,
    /// When each server sends next.
    next: [u64; SERVERS],
    sent: [usize; SERVERS],
    number: u64,
}

/// One order of the normal flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) at: Mono,
    pub(crate) server: usize,
    /// A number of its own; the 212 are no part of them.
    pub(crate) parent: u64,
    pub(crate) symbol: usize,
    pub(crate) account: usize,
    pub(crate) shares: u64,
    /// Shares that its parent asked for.
    pub(crate) quantity: u64,
}

/// The normal flow over all servers: 1 % of the shares that traded in the US on a day of July 2012, ten times as
/// much in the first minute.
#[derive(Clone)]
pub(crate) struct Flow {
    /// The opening's rate all day long.
    tenfold: bool,
    number: u64,
    parents: u64,
    /// What each server works at: ten parents in turn, with the children that each still lacks.
    working: [[(u64, u64); 10]; SERVERS],
    turn: [usize; SERVERS],
}

/// The parents of a server. 212 is 26.5 a server: 27 for the first four, 26 for the others.
pub(crate) fn parents_of(server: usize) -> Range<usize> {
    let first = server * 26 + server.min(4);
    first..first + if server < 4 { 27 } else { 26 }
}

/// The parents with their symbols: four of the hot one, the last that the bad server comes to; one or two of every other.
pub(crate) fn parents() -> Vec<Parent> {
    let bad = parents_of(BAD);
    let hot = bad.end - 4..bad.end;
    let mut parents = vec![Parent { symbol: HOT, account: 0 }; PARENTS];
    // The bad server's first, so that no symbol but the hot one has two of them.
    let others = bad.start..hot.start;
    let rest = (0..bad.start).chain(bad.end..PARENTS);
    for (position, parent) in others.chain(rest).enumerate() {
        parents[parent].symbol = 1 + position % (SYMBOLS - 1);
    }
    for (number, parent) in parents.iter_mut().enumerate() {
        parent.account = number % ACCOUNTS;
    }
    parents
}

/// Between two children of one server, so that there are 4 million in all: server 8 sends from the bell, the others
/// from the rollback. With the rollback at 1,200 s it is 3.3 ms exactly, 303.03 orders a second.
pub(crate) fn period(rollback: u64) -> u64 {
    (RUN + 7 * (RUN - rollback)) / CHILDREN
}

impl Children {
    /// With a rollback at that instant, or with none: then the bad server alone sends at the pace of 1,200 s.
    ///
    /// The servers stand an eighth of a period apart, the bad one three eighths after the bell. With these phases
    /// the whole numbers of children are the rounded means: 303 in a second, 4,000,000 in all.
    pub(crate) fn new(rollback: Option<u64>) -> Children {
        let period = period(rollback.unwrap_or(ROLLBACK));
        let next = std::array::from_fn(|server| {
            let start = if server == BAD { 0 } else { rollback.unwrap_or(RUN) };
            let phase = (server as u64 + 4) % 8;
            start + phase * period / 8
        });
        Children { rollback, period, next, sent: [0; SERVERS], number: 0 }
    }
}

impl Iterator for Children {
    type Item = Child;

    fn next(&mut self) -> Option<Child> {
        let mut server = BAD;
        if self.rollback.is_some_and(|rollback| self.next[BAD] >= rollback) {
            for other in 0..SERVERS {
                if self.next[other] < self.next[server] {
                    server = other;
                }
            }
        }
        let at = self.next[server];
        if at >= RUN {
            return None;
        }
        self.next[server] += self.period;
        let own = parents_of(server);
        let parent = own.start + self.sent[server] % own.len();
        self.sent[server] += 1;
        let number = self.number;
        self.number += 1;
        // 99.25 on the average: one odd lot in each hundred.
        let shares = if number % 100 == 99 { 25 } else { 100 };
        Some(Child { at: Mono::from_nanos(at), server, parent, number, shares })
    }
}

impl Flow {
    /// At 26.3 orders a second after the first minute, or ten times as much throughout.
    pub(crate) fn new(tenfold: bool) -> Flow {
        Flow {
            tenfold,
            number: 0,
            parents: 0,
            working: [[(0, 0); 10]; SERVERS],
            turn: [0; SERVERS],
        }
    }

    /// Children that fill a parent: 1 to 10, 5.5 on the average.
    fn children(parent: u64) -> u64 {
        1 + parent * 7 % 10
    }
}

impl Iterator for Flow {
    type Item = Plain;

    fn next(&mut self) -> Option<Plain> {
        const BURST: u64 = 263 * 60;
        let at = if self.tenfold || self.number < BURST {
            self.number * SECOND / 263
        } else {
            60 * SECOND + (self.number - BURST) * 10 * SECOND / 263
        };
        if at >= RUN {
            return None;
        }
        let server = (self.number % SERVERS as u64) as usize;
        self.number += 1;
        let turn = self.turn[server];
        self.turn[server] = (turn + 1) % 10;
        let (parent, lacks) = &mut self.working[server][turn];
        if *lacks == 0 {
            *parent = self.parents;
            *lacks = Flow::children(self.parents);
            self.parents += 1;
        }
        *lacks -= 1;
        let parent = *parent;
        Some(Plain {
            at: Mono::from_nanos(at),
            server,
            parent,
            // Neighbours in time are of different symbols.
            symbol: (parent * 37 % SYMBOLS as u64) as usize,
            account: (parent % ACCOUNTS as u64) as usize,
            shares: 100,
            quantity: 100 * Flow::children(parent),
        })
    }
}

/// That many seconds.
pub(crate) const fn seconds(count: u64) -> Span {
    Span::from_secs(count)
}

/// That many milliseconds after the bell.
pub(crate) const fn at_millis(millis: u64) -> Mono {
    Mono::from_nanos(millis * 1_000_000)
}
