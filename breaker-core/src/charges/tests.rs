//! What all kinds of limit have in common, and what passes from one row to another; each kind's own tests stand beside it.

use super::{Charges, Filled, Past, Row, Saved, Taken};
use crate::limit::{Limit, NEVER};
use crate::policy::{LimitKind, Unit};
use crate::time::{Mono, Span};
use proptest::prelude::*;

fn at(nanos: u64) -> Mono {
    Mono::from_nanos(nanos)
}

fn made(kind: LimitKind, by: Unit) -> Limit {
    Limit::new(kind, by).unwrap_or_else(|error| unreachable!("{error:?}"))
}

/// One limit of each kind, the rings and buckets of small and large.
fn kinds() -> impl Strategy<Value = Limit> {
    let span = |nanos| Span::from_nanos(nanos);
    let by = prop_oneof![Just(Unit::Calls), Just(Unit::Weight)];
    let kind = prop_oneof![
        (1_u64..30, 1_u64..3_000, 1_u64..30).prop_map(move |(count, per, burst)| {
            LimitKind::Rate { count, per: span(per), burst }
        }),
        (1_u64..30, 1_u64..3_000)
            .prop_map(move |(count, length)| LimitKind::Window { count, length: span(length) }),
        (1_u64..30, proptest::option::of(1_u64..3_000))
            .prop_map(move |(count, idle)| LimitKind::Budget { count, idle: idle.map(span) }),
        (1_u64..30).prop_map(|count| LimitKind::InFlight { count }),
    ];
    (kind, by).prop_filter_map("coarse", |(kind, by)| Limit::new(kind, by).ok())
}

/// How many calls of one pass in a row at an instant. Budgets and rows of no time pass no more than 1,000.
fn room(row: Row<'_>, limit: Limit, now: Mono) -> usize {
    (0..1_000).take_while(|_| row.take(limit, 1, now).is_ok()).count()
}

/// Goal: fresh memory is idle, holds nothing, and a row of it is as many words as the limit says.
#[test]
fn fresh_memory_is_idle() {
    let second = Span::from_secs(1);
    let limits = [
        made(LimitKind::Rate { count: 1, per: second, burst: 2 }, Unit::Weight),
        made(LimitKind::Window { count: 2, length: second }, Unit::Calls),
        made(LimitKind::Window { count: 2, length: second }, Unit::Weight),
        made(LimitKind::Budget { count: 2, idle: None }, Unit::Calls),
        made(LimitKind::Budget { count: 2, idle: Some(second) }, Unit::Calls),
        made(LimitKind::InFlight { count: 2 }, Unit::Calls),
    ];
    for limit in limits {
        let rows = Charges::for_rows(limit, 3);
        assert!(rows.row(3).is_none() && rows.row(usize::MAX).is_none());
        for index in 0..3 {
            let row = rows.row(index).unwrap();
            assert_eq!(row.rest.len() + 1, limit.words());
            assert!(row.is_idle(limit, at(7)));
            assert_eq!(row.used(limit, at(7)), 0);
            assert_eq!(room(row, limit, at(7)), 2, "{limit:?}");
            assert!(!row.is_idle(limit, at(7)));
            assert_eq!(row.used(limit, at(7)), 2);
        }
    }
    assert!(size_of::<Taken>() <= 16);
    let scope = Charges::for_scope(limits[0]);
    assert_eq!(std::ptr::from_ref(scope.row(0).unwrap().head).addr() % 128, 0);
}

/// Goal: what is in flight is given back once, and never below nothing.
#[test]
fn what_is_in_flight_is_given_back() {
    let limit = made(LimitKind::InFlight { count: 5 }, Unit::Weight);
    let charges = Charges::for_scope(limit);
    let row = charges.row(0).unwrap();
    assert_eq!(row.take(limit, 6, at(0)).unwrap_err(), NEVER);
    let taken = row.take(limit, 4, at(0)).unwrap();
    assert_eq!(row.peek(limit, 2, at(u64::MAX)), Err(NEVER));
    row.undo(limit, taken);
    row.take(limit, 5, at(0)).unwrap();
    // A crash leaves nothing in flight, and an eviction must not put there what nobody would give back.
    row.spend(limit, at(0));
    row.settle(limit, 5, 1, at(0), at(1));
    assert_eq!(row.used(limit, at(1)), 5);
    row.give_back(limit, 5);
    row.give_back(limit, 5);
    assert!(row.is_idle(limit, at(1)));
    assert_eq!(room(row, limit, at(1)), 5);
}

/// Goal: what was saved says something about limits of its kind only.
#[test]
fn the_saved_of_another_kind_is_refused() {
    let second = Span::from_secs(1);
    let rate = made(LimitKind::Rate { count: 1, per: second, burst: 2 }, Unit::Calls);
    let budget = made(LimitKind::Budget { count: 2, idle: None }, Unit::Calls);
    let charges = Charges::for_scope(rate);
    let row = charges.row(0).unwrap();
    let past = Past { known: u64::MAX, passed: vec![(3, 1)] };
    for saved in [Saved::InFlight, Saved::Window(past), Saved::Budget { used: 1, age: None }] {
        assert_eq!(row.restore(rate, &saved, at(5)), Filled::Not);
        assert!(row.is_idle(rate, at(5)));
    }
    assert_eq!(row.restore(rate, &Saved::Fresh, at(5)), Filled::Whole);
    let old = Charges::for_scope(budget);
    let old = old.row(0).unwrap();
    row.seed(rate, old, budget, at(5));
    assert!(row.is_idle(rate, at(5)), "nothing was ever charged");
    old.take(budget, 1, at(5)).unwrap();
    row.seed(rate, old, budget, at(5));
    assert_eq!(room(row, rate, at(5)), 0, "unknown counts as passed");
}

proptest! {
    /// Goal: a late undo frees nothing: the calls that were never undone hold the bound by
    /// themselves, however late and in whatever order the others are undone. The same of weights that are
    /// settled; of those nothing is undone.
    #[test]
    fn a_late_undo_frees_nothing(
        burst in 1_u64..9, by in prop_oneof![Just(Unit::Calls), Just(Unit::Weight)],
        acts in proptest::collection::vec((0..4_u8, 0_u64..25, 0..8_usize, 1_u64..4), 1..120),
    ) {
        let limit = made(LimitKind::Rate { count: 1, per: Span::from_nanos(10), burst }, by);
        let charges = Charges::for_scope(limit);
        let row = charges.row(0).unwrap();
        let mut now = 100;
        // Instant, amount reserved, amount in truth, and how to undo it.
        let mut taken: Vec<(u64, u64, u64, Taken)> = Vec::new();
        for (act, step, which, amount) in acts {
            match act {
                0 => now += step,
                1 if !taken.is_empty() => {
                    let index = which % taken.len();
                    row.undo(limit, taken[index].3);
                    if by == Unit::Calls {
                        taken.remove(index);
                    }
                }
                2 if !taken.is_empty() && by == Unit::Weight => {
                    let index = which % taken.len();
                    let (then, reserved, truth, _) = &mut taken[index];
                    if truth == reserved {
                        *truth = *reserved - amount.min(*reserved);
                        row.settle(limit, *reserved, *truth, at(*then), at(now));
                    }
                }
                _ => {
                    if let Ok(charge) = row.take(limit, amount, at(now)) {
                        taken.push((now, amount, amount, charge));
                    }
                }
            }
            // After each act, for the undone ones are gone from the list only now.
            for (index, (first, ..)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (last, _, truth, _) in &taken[index..] {
                    sum += truth;
                    prop_assert!(sum.saturating_sub(burst) * 10 <= last - first);
                }
            }
        }
    }

    /// Goal: an undo that nothing stands against is exact, for all that can undo.
    #[test]
    fn an_undo_at_once_is_exact(
        limit in kinds(), steps in proptest::collection::vec((0_u64..400, 1_u64..5), 0..30),
    ) {
        let charges = Charges::for_scope(limit);
        let row = charges.row(0).unwrap();
        let mut now = 10_000;
        for (step, amount) in steps {
            now += step;
            let before = row.used(limit, at(now));
            if let Ok(taken) = row.take(limit, amount, at(now)) {
                let after = row.used(limit, at(now));
                prop_assert!(after > before);
                row.undo(limit, taken);
                // A budget that forgets gives back what it can, though it cannot undo all.
                let gives = limit.can_undo() || matches!(limit, Limit::Budget(_));
                let left = if gives { before } else { after };
                prop_assert_eq!(row.used(limit, at(now)), left);
                let _ = row.take(limit, amount, at(now));
            }
        }
    }

    /// Goal: what is saved and restored, with another origin of time, goes on as it was, but for
    /// buckets: they are cut anew, and may leave by a tick and 63 ns sooner or later; see the next test for their bound.
    #[test]
    fn a_restored_row_goes_on_where_it_was(
        limit in kinds(),
        steps in proptest::collection::vec((0_u64..400, 1_u64..5), 0..60),
        origin in 0_u64..5_000,
        later in proptest::collection::vec(0_u64..200, 1..20),
    ) {
        let (old, new) = (Charges::for_scope(limit), Charges::for_scope(limit));
        let (old, new) = (old.row(0).unwrap(), new.row(0).unwrap());
        let mut now = 10_000;
        for (step, amount) in steps {
            now += step;
            if let (Ok(_), Limit::InFlight(_)) = (old.take(limit, amount, at(now)), limit) {
                // Nothing in flight outlives its process.
                old.give_back(limit, amount);
            }
        }
        let saved = old.save(limit, at(now)).unwrap();
        prop_assert_eq!(new.restore(limit, &saved, at(origin)), Filled::Whole);
        if !matches!(limit, Limit::Buckets(_)) {
            prop_assert_eq!(new.used(limit, at(origin)), old.used(limit, at(now)));
        }
        let mut late = 0;
        for step in later {
            // Both go on, each in its own time.
            late += step;
            let (then, again) = (at(now + late), at(origin + late));
            let (ours, theirs) = (new.peek(limit, 1, again), old.peek(limit, 1, then));
            let most = if let Limit::Buckets(_) = limit { 64 + 3_000 / 64 + 1 } else { 0 };
            let wait = |answer: Result<(), Span>| answer.err().map_or(0, Span::as_nanos);
            prop_assert!(wait(ours).saturating_add(most) >= wait(theirs), "freer: {ours:?} than {theirs:?}");
            prop_assert!(wait(ours) <= wait(theirs).saturating_add(most), "stricter: {ours:?} than {theirs:?}");
            prop_assert!(most > 0 || !new.is_idle(limit, again) || old.is_idle(limit, then));
        }
    }

    /// Goal: memory that is seeded is never freer than if the changed limit had counted all along, for
    /// windows of all kinds and sizes against the whole list of what passed.
    #[test]
    fn a_changed_window_knows_what_passed(
        (count, length) in (1_u64..12, 1_u64..400), was_by in 0..2_u8,
        (next, longer) in (1_u64..12, 1_u64..400), by in 0..2_u8,
        steps in proptest::collection::vec(0_u64..120, 0..60),
        later in proptest::collection::vec(0_u64..120, 1..40),
    ) {
        let unit = |by| if by == 0 { Unit::Calls } else { Unit::Weight };
        let was = made(LimitKind::Window { count, length: Span::from_nanos(length) }, unit(was_by));
        let limit = made(LimitKind::Window { count: next, length: Span::from_nanos(longer) }, unit(by));
        let (old, new) = (Charges::for_scope(was), Charges::for_scope(limit));
        let (old, new) = (old.row(0).unwrap(), new.row(0).unwrap());
        let mut now = 1_000;
        let mut passed = Vec::new();
        for step in steps {
            now += step;
            if old.take(was, 1, at(now)).is_ok() {
                passed.push(now);
            }
        }
        let fresh = passed.is_empty();
        let before = passed.len();
        new.seed(limit, old, was, at(now));
        for step in later {
            now += step;
            if new.take(limit, 1, at(now)).is_ok() {
                let recent = passed.iter().filter(|then| **then + longer > now).count();
                prop_assert!(u64::try_from(recent).unwrap() < next, "freer");
                passed.push(now);
            } else if fresh {
                // Nothing unknown: the list alone refuses, by a tick at most.
                let slack = if by == 1 { longer.div_ceil(64) + 63 } else { 0 };
                let recent = passed.iter().filter(|then| **then + longer + slack > now).count();
                prop_assert!(u64::try_from(recent).unwrap() >= next, "too strict");
            }
        }
        // What is unknown has passed a whole length later.
        now += 2 * longer + 400 + 200;
        prop_assert!(new.is_idle(limit, at(now)), "{} before", before);
        prop_assert_eq!(room(new, limit, at(now)), usize::try_from(next).unwrap());
    }

    /// Goal: a changed budget keeps what is used, and forgets no earlier than its last charge allows.
    #[test]
    fn a_changed_budget_keeps_what_is_used(
        (count, idle) in (1_u64..12, proptest::option::of(1_u64..400)),
        (next, other) in (1_u64..12, proptest::option::of(1_u64..400)),
        steps in proptest::collection::vec(0_u64..60, 0..30),
    ) {
        let kind = |count, idle: Option<u64>| {
            made(LimitKind::Budget { count, idle: idle.map(Span::from_nanos) }, Unit::Calls)
        };
        let (was, limit) = (kind(count, idle), kind(next, other));
        let (old, new) = (Charges::for_scope(was), Charges::for_scope(limit));
        let (old, new) = (old.row(0).unwrap(), new.row(0).unwrap());
        let (mut now, mut last) = (1_000, 0);
        for step in steps {
            now += step;
            if old.take(was, 1, at(now)).is_ok() {
                last = now;
            }
        }
        let used = old.used(was, at(now));
        new.seed(limit, old, was, at(now));
        let lapsed = other.is_some_and(|other| idle.is_some() && last + other <= now);
        prop_assert_eq!(new.used(limit, at(now)), if lapsed { 0 } else { used });
        if let (Some(other), false) = (other, used == 0 || lapsed) {
            let due = if idle.is_some() { last + other } else { now + other };
            prop_assert_eq!(new.used(limit, at(due - 1)), used);
            prop_assert_eq!(new.used(limit, at(due)), 0);
        }
    }

    /// Goal: a spent row passes nothing at once, of whatever kind, and comes back within its recovery.
    #[test]
    fn a_spent_row_passes_nothing_at_once(
        limit in kinds(), steps in proptest::collection::vec((0_u64..400, 1_u64..5), 0..30),
    ) {
        if let Limit::InFlight(_) = limit {
            return Ok(());
        }
        let charges = Charges::for_scope(limit);
        let row = charges.row(0).unwrap();
        let mut now = 10_000;
        for (step, amount) in steps {
            now += step;
            let _ = row.take(limit, amount, at(now));
        }
        row.spend(limit, at(now));
        prop_assert!(row.take(limit, 1, at(now)).is_err());
        let recovery = limit.recovery();
        if recovery != NEVER {
            prop_assert!(row.is_idle(limit, at(now).plus(recovery)));
            prop_assert!(row.take(limit, 1, at(now).plus(recovery)).is_ok());
        }
    }

    /// Goal: nothing panics, loops or overflows at any numbers, and what is refused never passes by a look.
    #[test]
    fn no_number_breaks_a_row(
        kind in prop_oneof![
            (any::<u64>(), any::<u64>(), any::<u64>())
                .prop_map(|(count, per, burst)| LimitKind::Rate { count, per: Span::from_nanos(per), burst }),
            (1_u64..70_000, any::<u64>())
                .prop_map(|(count, length)| LimitKind::Window { count, length: Span::from_nanos(length) }),
            (any::<u64>(), proptest::option::of(any::<u64>()))
                .prop_map(|(count, idle)| LimitKind::Budget { count, idle: idle.map(Span::from_nanos) }),
            any::<u64>().prop_map(|count| LimitKind::InFlight { count }),
        ],
        by in prop_oneof![Just(Unit::Calls), Just(Unit::Weight)],
        small in 0_u32..64,
        acts in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_u32..64), 1..20),
    ) {
        let Ok(limit) = Limit::new(kind, by) else { return Ok(()) };
        let (charges, other) = (Charges::for_scope(limit), Charges::for_scope(limit));
        let row = charges.row(0).unwrap();
        for (now, amount, since, shift) in acts {
            let (now, amount) = (at(now >> shift), amount >> small);
            let peeked = row.peek(limit, amount, now);
            let taken = row.take(limit, amount, now);
            prop_assert_eq!(peeked.is_ok(), taken.is_ok());
            row.settle(limit, amount, since >> small, at(since), now);
            row.undo(limit, taken.unwrap_or_default());
            row.give_back(limit, amount);
            row.spend(limit, now);
            let _ = (row.used(limit, now), row.is_idle(limit, now), limit.recovery());
            let saved = row.save(limit, now).unwrap();
            let filled = other.row(0).unwrap().restore(limit, &saved, at(since));
            prop_assert_ne!(filled, Filled::Not);
        }
        row.reset(limit, at(u64::MAX));
    }
}
