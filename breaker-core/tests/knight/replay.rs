//! The morning itself: it offers each order at its instant, keeps the book, and calls whoever watches. It decides nothing.

use std::ops::Range;

use breaker_core::{Denial, Mono};

use crate::firm::{Book, Firm};
use crate::market::{BAD, Child, Children, Flow, Plain, RUN};

/// Which morning.
#[derive(Clone)]
pub(crate) struct Replay {
    /// When the good servers turn bad; `None` for never.
    pub(crate) rollback: Option<u64>,
    /// Normal flow on the servers that are not bad yet.
    pub(crate) flow: Option<Flow>,
    /// When to call the watcher besides, in the order of time.
    pub(crate) ticks: Vec<Mono>,
    /// When to stop looking.
    pub(crate) until: u64,
    /// When nothing is offered, for all that is bad is halted: from, until.
    pub(crate) dull: Range<u64>,
}

/// What a watcher is told.
pub(crate) enum News<'a> {
    Sent(&'a Child),
    Refused(&'a Child, &'a Denial),
    Tick(Mono),
}

impl Replay {
    /// The defect alone, to the end.
    pub(crate) fn new(rollback: Option<u64>) -> Replay {
        Replay { rollback, flow: None, ticks: Vec::new(), until: RUN, dull: 0..0 }
    }

    /// Plays it. At one instant a tick comes first, then normal orders, then children.
    pub(crate) fn play(
        &self,
        firm: &Firm,
        watch: &mut dyn FnMut(&Firm, &mut Book, News<'_>),
    ) -> Book {
        let mut book = Book::new();
        let mut ticks = self.ticks.iter().copied().peekable();
        let mut flow = self.flow.clone().into_iter().flatten().peekable();
        for child in Children::new(self.rollback) {
            if child.at.as_nanos() >= self.until {
                break;
            }
            if self.dull.contains(&child.at.as_nanos()) {
                continue;
            }
            while let Some(tick) = ticks.next_if(|&tick| tick <= child.at) {
                watch(firm, &mut book, News::Tick(tick));
            }
            while let Some(order) = flow.next_if(|order| order.at <= child.at) {
                self.offer_plain(firm, &mut book, &order);
            }
            let verdict = firm.send(&child);
            book.write(&child, &verdict, Some(firm));
            if child.number % CANCEL_EVERY == 0 {
                book.cancels_offered += 1;
                book.cancels_passed += u64::from(firm.cancel(&child).is_ok());
                book.cancels_halted += u64::from(verdict.is_err());
            }
            match verdict {
                Ok(()) => watch(firm, &mut book, News::Sent(&child)),
                Err(denial) => watch(firm, &mut book, News::Refused(&child, &denial)),
            }
        }
        firm.agrees(&book);
        book
    }

    /// Plays it with nobody watching.
    pub(crate) fn alone(&self, firm: &Firm) -> Book {
        self.play(firm, &mut |_, _, _| {})
    }

    fn offer_plain(&self, firm: &Firm, book: &mut Book, order: &Plain) {
        let rolled_back = self.rollback.is_some_and(|rollback| order.at.as_nanos() >= rollback);
        if order.server == BAD || rolled_back {
            // A bad server runs its loop and nothing else.
            return;
        }
        book.plain_offered += 1;
        match firm.send_plain(order) {
            Ok(()) => book.plain_sent += 1,
            Err(denial) => {
                book.plain_refused += 1;
                book.checked += u64::from(firm.is_check(&denial));
            }
        }
    }
}

/// A cancel for one child in so many: no divisor of the parents of a server, so that all are cancelled in turn.
const CANCEL_EVERY: u64 = 97;
