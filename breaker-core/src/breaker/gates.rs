//! The named gates of one route, held so that they can be looked at again and again; it reads no clock and decides nothing.

use crate::cell::Gate;
use crate::counts::Count;
use crate::facts::{Cause, Class, Mode};
use crate::gate::Refuses;
use crate::policy::{NAMED, Policy, RouteId, RouteRules};

/// The gates of a route's named scopes: of `/`, its group and itself.
///
/// For senders that ask often while they are blocked: look here first, and read the clock only if it says nothing.
#[derive(Clone, Copy)]
pub struct Gates<'a> {
    policy: &'a Policy,
    route: &'a RouteRules,
    gates: [&'a Gate; NAMED],
    reducing: bool,
    /// What refuses by itself: nothing where the route is a reducing one, or a scope of the lineage in shadow mode by its policy.
    refuses: Refuses,
}

impl<'a> Gates<'a> {
    #[inline(always)]
    pub(crate) fn of(policy: &'a Policy, route: &'a RouteRules) -> Gates<'a> {
        let gates = route.gates.each_ref().map(|cell| &cell.gate);
        let reducing = matches!(route.class, Class::Reducing);
        Gates { policy, route, gates, reducing, refuses: Refuses::new(route.enforced && !reducing) }
    }

    /// A block that no time ends: a kill, or a trip that waits for a person and that no shadow mode lets through. The widest
    /// answers. The call's keys are not looked at. It needs no clock and counts nothing.
    #[inline(always)]
    #[must_use]
    pub fn blocked(&self) -> Option<Cause> {
        for gate in self.gates {
            let word = gate.word();
            if !word.is_quiet() {
                return word.lasting_block(self.refuses).or_else(|| self.look_closely());
            }
        }
        None
    }

    /// As [`Gates::blocked`], and counts a call as refused if it is.
    #[inline(always)]
    #[must_use]
    pub fn refuse(&self) -> Option<Cause> {
        let cause = self.blocked()?;
        self.route.count(Count::Blocked);
        Some(cause)
    }

    /// The block that no time ends, asked of the rules of each scope.
    #[inline(never)]
    fn look_closely(&self) -> Option<Cause> {
        self.gates.into_iter().zip(self.route.lineage).find_map(|(gate, scope)| {
            let rules = &self.policy.scopes.get(scope)?.rules;
            let word = gate.word();
            let cause = word.endless_block(self.reducing, &rules.trip)?;
            let shadow = word.mode().unwrap_or(rules.mode) == Mode::Shadow;
            (!shadow || matches!(cause, Cause::Killed(_))).then_some(cause)
        })
    }
}

impl Policy {
    /// The gates of a route of this policy; `None` for a route of another.
    #[must_use]
    pub fn gates(&self, route: RouteId) -> Option<Gates<'_>> {
        Some(Gates::of(self, self.route_rules(route)?))
    }
}

impl std::fmt::Debug for Gates<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gates").field("blocked", &self.blocked()).finish_non_exhaustive()
    }
}
