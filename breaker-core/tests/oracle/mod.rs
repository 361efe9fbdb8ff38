//! The rules of a decision, written slowly and obviously, for one thread; it shares no code with the crate, and is never fast.
//!
//! Time is in units of 2²⁴ ns, the gate's own, so that its rounding does not show.

use std::collections::BTreeMap;

/// A limit: of a window the instants, of a rate the debt.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) kind: Kind,
    pub(crate) offered: bool,
    pub(crate) trips: bool,
    passed: Vec<u64>,
    debt: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Window {
        count: usize,
        length: u64,
    },
    /// One call each `cost`, so many at once.
    Rate {
        cost: u64,
        burst: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Armed,
    Tripped,
    HalfOpen,
    Halted,
    Cut,
}

#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) limits: Vec<Limit>,
    pub(crate) shadow: bool,
    pub(crate) probes: u32,
    /// First and longest hold; `None`: manual.
    pub(crate) holds: Option<(u64, u64)>,
    pub(crate) state: State,
    pub(crate) until: u64,
    pub(crate) strikes: u32,
    pub(crate) left: u32,
    pub(crate) owed: u32,
    pub(crate) moves: u64,
    endless: bool,
}

/// What the oracle says of a call: who refused (index in the lineage), why, and how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Pass { probes: Vec<(usize, u64)>, shadowed: bool },
    Limit { scope: usize, limit: usize, wait: u64 },
    Breach { scope: usize, limit: usize },
    Tripped { scope: usize },
    Probing { scope: usize },
    Killed { scope: usize, cut: bool },
}

impl Limit {
    pub(crate) fn new(kind: Kind, offered: bool, trips: bool) -> Limit {
        Limit { kind, offered, trips, passed: Vec::new(), debt: 0 }
    }

    /// The wait until one more could pass, zero if now.
    fn wait(&self, now: u64) -> u64 {
        match self.kind {
            Kind::Window { count, length } => {
                if self.passed.len() < count {
                    return 0;
                }
                let newest = *self.passed.last().unwrap();
                let oldest = self.passed[self.passed.len() - count];
                let recent = now.max(newest) < oldest + length;
                if recent { oldest + length - now } else { 0 }
            }
            Kind::Rate { cost, burst } => {
                (self.debt.max(now) + cost).saturating_sub(now + cost * burst)
            }
        }
    }

    fn charge(&mut self, now: u64) {
        match self.kind {
            Kind::Window { .. } => {
                let newest = self.passed.last().copied().unwrap_or(0);
                self.passed.push(now.max(newest));
            }
            Kind::Rate { cost, .. } => self.debt = self.debt.max(now) + cost,
        }
    }
}

impl Scope {
    pub(crate) fn new(
        limits: Vec<Limit>,
        shadow: bool,
        probes: u32,
        holds: Option<(u64, u64)>,
    ) -> Scope {
        Scope {
            limits,
            shadow,
            probes,
            holds,
            state: State::Armed,
            until: 0,
            strikes: 0,
            left: 0,
            owed: 0,
            moves: 0,
            endless: false,
        }
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.moves += 1;
    }

    pub(crate) fn is_over(&self, now: u64) -> bool {
        self.state == State::Tripped && !self.endless && now >= self.until
    }

    pub(crate) fn trip(&mut self, now: u64) -> bool {
        self.elapse(now);
        match self.state {
            State::Armed => {
                if self.strikes > 0 && now >= self.until {
                    self.strikes = 0;
                }
            }
            State::HalfOpen => {}
            _ => return false,
        }
        self.strikes = (self.strikes + 1).min(15);
        self.endless = self.holds.is_none();
        if let Some((first, longest)) = self.holds {
            let mut hold = first << (self.strikes - 1);
            if self.strikes > 1 {
                // The documented spread: up to a quarter more, by the top byte of the instant's
                // nanoseconds times 2⁶⁴ over the golden ratio.
                let share = (now << 24).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
                hold += hold * share / 1_024;
            }
            self.until = now + 1 + hold.min(longest);
        }
        self.go(State::Tripped);
        true
    }

    pub(crate) fn elapse(&mut self, now: u64) {
        if self.is_over(now) {
            self.half_open();
        } else if self.state == State::Armed && self.strikes > 0 && now >= self.until {
            self.strikes = 0;
        }
    }

    pub(crate) fn half_open(&mut self) {
        (self.left, self.owed) = (self.probes, self.probes);
        self.go(State::HalfOpen);
    }

    pub(crate) fn arm(&mut self) {
        self.strikes = 0;
        self.go(State::Armed);
    }

    pub(crate) fn kill(&mut self, cut: bool) {
        let cut = cut || self.state == State::Cut;
        self.go(if cut { State::Cut } else { State::Halted });
    }

    /// A probe came back: good, bad, or not at all. Only in the probation that gave it.
    pub(crate) fn probe(&mut self, moves: u64, good: Option<bool>, now: u64) -> bool {
        if self.state != State::HalfOpen || self.moves != moves {
            return false;
        }
        match good {
            None => {
                self.left += 1;
                false
            }
            Some(false) => self.trip(now),
            Some(true) => {
                self.owed -= 1;
                if self.owed > 0 {
                    return false;
                }
                match self.holds {
                    Some((_, longest)) if self.strikes > 0 => self.until = now + 1 + longest,
                    _ => self.strikes = 0,
                }
                self.go(State::Armed);
                true
            }
        }
    }
}

/// Decides on a call. `lineage` is global, group, route, then the keys.
pub(crate) fn decide(
    scopes: &mut BTreeMap<String, Scope>,
    lineage: &[String],
    reducing: bool,
    now: u64,
) -> Answer {
    let mut shadowed = false;
    // Look, wide to narrow.
    for (index, name) in lineage.iter().enumerate() {
        let scope = &scopes[name];
        let answer = match scope.state {
            State::Cut => return Answer::Killed { scope: index, cut: true },
            State::Halted if !reducing => return Answer::Killed { scope: index, cut: false },
            State::Tripped if !reducing && !scope.is_over(now) => Answer::Tripped { scope: index },
            State::HalfOpen if !reducing && scope.left == 0 => Answer::Probing { scope: index },
            _ => continue,
        };
        if !scope.shadow {
            return answer;
        }
        shadowed = true;
    }
    if reducing {
        return Answer::Pass { probes: Vec::new(), shadowed };
    }
    // Who refuses, from the narrowest; the wait is the longest of all.
    let narrow: Vec<usize> = (0..lineage.len()).rev().collect();
    let enforced = |scope: &Scope| !scope.shadow && scope.limits.iter().any(|l| l.wait(now) > 0);
    let refusing = narrow.iter().copied().find(|&index| enforced(&scopes[&lineage[index]]));
    let wait = lineage
        .iter()
        .filter(|name| !scopes[*name].shadow)
        .flat_map(|name| scopes[name].limits.iter().map(|limit| limit.wait(now)))
        .max()
        .unwrap_or(0);
    for index in narrow {
        let scope = scopes.get_mut(&lineage[index]).unwrap();
        let here = refusing == Some(index);
        let waits: Vec<u64> = scope.limits.iter().map(|limit| limit.wait(now)).collect();
        let refused_offer = scope.limits.iter().zip(&waits).any(|(l, w)| l.offered && *w > 0);
        let mut asked = Vec::new();
        let mut stopped = false;
        for (number, limit) in scope.limits.iter_mut().enumerate() {
            let counts = if limit.offered {
                true
            } else {
                // In shadow, admitted limits go on until one refuses.
                refusing.is_none() && !stopped && (!refused_offer || scope.shadow)
            };
            if counts && waits[number] == 0 {
                limit.charge(now);
            } else if waits[number] > 0 && (counts || here) {
                asked.push(number);
                stopped |= !limit.offered;
            }
        }
        if asked.is_empty() {
            continue;
        }
        // The one that trips leads, then the one that waits longest, then the first.
        let longest = |trips: bool| {
            let mut lead: Option<usize> = None;
            for &number in asked.iter().filter(|&&n| scope.limits[n].trips == trips) {
                if lead.is_none_or(|lead| waits[number] > waits[lead]) {
                    lead = Some(number);
                }
            }
            lead
        };
        let trips = longest(true);
        let lead = trips.or_else(|| longest(false)).unwrap();
        if trips.is_some() {
            scope.trip(now);
        }
        if scope.shadow {
            shadowed = true;
        } else if trips.is_some() {
            return Answer::Breach { scope: index, limit: lead };
        } else {
            return Answer::Limit { scope: index, limit: lead, wait };
        }
    }
    // Probes, wide to narrow.
    let mut probes = Vec::new();
    for (index, name) in lineage.iter().enumerate() {
        let scope = scopes.get_mut(name).unwrap();
        scope.elapse_for_probe(now);
        if scope.state == State::HalfOpen && scope.left > 0 {
            scope.left -= 1;
            probes.push((index, scope.moves));
        }
    }
    Answer::Pass { probes, shadowed }
}

impl Scope {
    fn elapse_for_probe(&mut self, now: u64) {
        if self.is_over(now) {
            self.half_open();
        }
    }
}
