//! How a gate moves, as told in the table of states; instants are nanoseconds, and only holds know the gate's unit.

/// Holds are counted in units of 2²⁴ ns, rounded up.
const UNIT: u64 = 1 << 24;
const MINUTE: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Armed,
    Tripped,
    HalfOpen,
    Halted,
    Cut,
}

/// Who tripped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Hand,
    Limit(usize),
}

/// How it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) probes: u64,
    /// First and longest hold; `None`: manual.
    pub(crate) holds: Option<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) state: State,
    /// None: armed, killed, or on probation after a kill.
    pub(crate) why: Option<Why>,
    /// What a kill found: who tripped it, whether without an end, until when.
    below: Option<(Option<Why>, bool, u64)>,
    /// In units.
    until: u64,
    pub(crate) strikes: u32,
    pub(crate) left: u64,
    owed: u64,
    pub(crate) moves: u64,
    endless: bool,
    /// An operator's word: shadow or not.
    pub(crate) mode: Option<bool>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            state: State::Armed,
            why: None,
            below: None,
            until: 0,
            strikes: 0,
            left: 0,
            owed: 0,
            moves: 0,
            endless: false,
            mode: None,
        }
    }
}

impl Gate {
    fn go(&mut self, state: State) {
        self.state = state;
        self.moves += 1;
    }

    /// When its hold ends, if it is tripped and has an end.
    pub(crate) fn hold_ends(&self, recovery: &Recovery) -> Option<u64> {
        let ends = self.state == State::Tripped && !self.endless && recovery.holds.is_some();
        ends.then_some(self.until * UNIT)
    }

    pub(crate) fn is_over(&self, recovery: &Recovery, now: u64) -> bool {
        self.hold_ends(recovery).is_some_and(|end| now >= end)
    }

    /// Its probes never came back.
    pub(crate) fn is_overdue(&self, now: u64) -> bool {
        self.state == State::HalfOpen && self.left < self.owed && now / UNIT >= self.until
    }

    pub(crate) fn is_killed(&self) -> bool {
        matches!(self.state, State::Halted | State::Cut)
    }

    pub(crate) fn wants_probe(&self, recovery: &Recovery, now: u64) -> bool {
        self.is_over(recovery, now)
            || self.state == State::HalfOpen && (self.left > 0 || self.is_overdue(now))
    }

    /// As it shows to whoever reads it.
    pub(crate) fn shown(&self, recovery: &Recovery, now: u64) -> Gate {
        let mut shown = self.clone();
        if self.state != State::Armed {
            shown.elapse(recovery, now);
        }
        shown
    }

    /// Time acts.
    pub(crate) fn elapse(&mut self, recovery: &Recovery, now: u64) {
        if self.is_over(recovery, now) {
            self.half_open(recovery);
        } else if self.is_overdue(now) {
            self.left = self.owed;
            self.go(State::HalfOpen);
        } else if self.state == State::Armed && self.strikes > 0 && now / UNIT >= self.until {
            self.strikes = 0;
        } else if self.is_killed() {
            // The trip below a kill has ended.
            self.below = self.below.filter(|&(_, endless, until)| {
                endless || recovery.holds.is_none() || now / UNIT < until
            });
        }
    }

    pub(crate) fn trip(&mut self, why: Why, recovery: &Recovery, now: u64) -> bool {
        self.elapse(recovery, now);
        let trips = matches!(self.state, State::Armed | State::HalfOpen);
        if trips {
            self.fall(Some(why), recovery, now);
        }
        trips
    }

    fn fall(&mut self, why: Option<Why>, recovery: &Recovery, now: u64) {
        self.strikes = (self.strikes + 1).min(15);
        self.endless = recovery.holds.is_none();
        if let Some((first, longest)) = recovery.holds {
            let mut hold = first.div_ceil(UNIT) << (self.strikes - 1);
            if self.strikes > 1 {
                // The documented spread: up to a quarter more, by the top byte of the instant's
                // nanoseconds times 2⁶⁴ over the golden ratio.
                let share = now.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
                hold += hold * share / 1_024;
            }
            self.until = now / UNIT + 1 + hold.min(longest.div_ceil(UNIT));
        }
        self.why = why;
        self.go(State::Tripped);
    }

    fn half_open(&mut self, recovery: &Recovery) {
        (self.left, self.owed) = (recovery.probes, recovery.probes);
        self.go(State::HalfOpen);
    }

    fn arm(&mut self) {
        (self.strikes, self.why) = (0, None);
        self.go(State::Armed);
    }

    pub(crate) fn kill(&mut self, cut: bool) {
        let cut = cut || self.state == State::Cut;
        if !self.is_killed() {
            let trip = (self.why, self.endless, self.until);
            self.below = (self.state == State::Tripped).then_some(trip);
        }
        self.why = None;
        self.go(if cut { State::Cut } else { State::Halted });
    }

    /// Whether a lift that saw the gate after so many moves does something, or had nothing to do.
    pub(crate) fn lift(&mut self, saw: u64, to: State, recovery: &Recovery, now: u64) -> bool {
        if self.moves != saw {
            return false;
        }
        let killed = self.is_killed();
        if killed && to != State::Halted {
            self.elapse(recovery, now);
        }
        let below = self.below;
        match (to, self.state) {
            (State::Halted, State::Cut) => self.go(State::Halted),
            (State::Halted, _) => {}
            (State::HalfOpen, State::Tripped | State::Halted | State::Cut) => {
                if let Some((why, ..)) = below.filter(|_| killed) {
                    self.why = why;
                }
                self.half_open(recovery);
            }
            (State::Armed, State::Halted | State::Cut) if below.is_some() => {
                (self.why, self.endless, self.until) = below.unwrap();
                self.go(State::Tripped);
            }
            (State::Armed, State::Armed) | (State::HalfOpen, _) => return false,
            _ => self.arm(),
        }
        true
    }

    /// False if there was nothing to do; a killed gate is for the caller to refuse.
    pub(crate) fn reset(&mut self) -> bool {
        match self.state {
            State::Tripped | State::HalfOpen => {
                self.arm();
                self.mode = None;
                true
            }
            State::Armed => {
                let something = self.strikes > 0 || self.mode.is_some();
                (self.strikes, self.mode) = (0, None);
                something
            }
            State::Halted | State::Cut => false,
        }
    }

    /// Gives out a probe, if it has one.
    pub(crate) fn take_probe(&mut self, recovery: &Recovery, now: u64) -> bool {
        if self.state != State::HalfOpen || self.left == 0 {
            self.elapse(recovery, now);
        }
        if self.state != State::HalfOpen || self.left == 0 {
            return false;
        }
        self.left -= 1;
        let patience = recovery.holds.map_or(0, |(first, _)| first).max(MINUTE).div_ceil(UNIT);
        self.until = now / UNIT + 1 + patience;
        true
    }

    /// A probe came back: good, bad, or not at all. Only in the probation that gave it. True if the gate moved.
    pub(crate) fn probe(
        &mut self,
        saw: u64,
        good: Option<bool>,
        recovery: &Recovery,
        now: u64,
    ) -> bool {
        if self.state != State::HalfOpen || self.moves != saw {
            return false;
        }
        match good {
            None => {
                self.left += 1;
                return false;
            }
            Some(false) => self.fall(self.why, recovery, now),
            Some(true) => {
                self.owed -= 1;
                if self.owed > 0 {
                    return false;
                }
                match recovery.holds {
                    Some((_, longest)) if self.strikes > 0 => {
                        self.until = now / UNIT + 1 + longest.div_ceil(UNIT);
                    }
                    _ => self.strikes = 0,
                }
                self.why = None;
                self.go(State::Armed);
            }
        }
        true
    }
}
