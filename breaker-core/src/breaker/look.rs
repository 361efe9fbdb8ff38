//! The last look of a call on its way out: does what it was admitted under still hold? It charges nothing.

use super::{Breaker, NOWHERE, count, denial};
use crate::facts::{Denial, Place};
use crate::gate::Word;
use crate::keys::Table;
use crate::permit::{KeySeat, Pass};
use crate::scope::{KeyHash, Level};
use crate::time::Mono;

impl Breaker {
    /// The last look: does what the pass was given under still hold?
    ///
    /// Any block that stands now denies, and so does a gate that moved since (`Stale`). A reducing
    /// call is denied only by a cut, a call that shadow mode let through only by a kill.
    /// A key that has another cell than it had, or had none, is judged by that: as nobody knows what became of it in between, a cell
    /// whose gate ever moved counts as moved since. One that has no cell any more is judged by its named scopes alone.
    ///
    /// By itself this proves nothing about a kill that comes a moment later:
    /// [`Sender::send`](crate::Sender::send) does.
    ///
    /// # Errors
    /// The denial.
    pub fn look(&self, pass: &Pass, _now: Mono) -> Result<(), Denial> {
        let levels = [Level::Global, Level::Group, Level::Route];
        for (seat, level) in pass.named.iter().zip(levels) {
            let Some(gate) = self.named_gate(seat.cell) else { return Err(NOWHERE) };
            let word = gate.word();
            if let Some(cause) = word.look_again(seat.epoch, pass.reducing, seat.shadow) {
                let place = Place { level, index: seat.cell, key: None };
                return Err(denial(place, cause, None, word.epoch()));
            }
        }
        for (seat, index) in pass.keys.iter().zip(0_u8..) {
            let Some(seat) = seat else { continue };
            let Some((cell, word)) = self.key_word(seat) else { continue };
            // In another cell than before the epoch is another count, and only a gate that never moved is sure not to have
            // been killed and lifted meanwhile.
            let epoch = if cell == seat.cell() { seat.epoch() } else { 0 };
            if let Some(cause) = word.look_again(epoch, pass.reducing, seat.shadow()) {
                let key = Some((index, seat.key));
                let place = Place { level: Level::Key, index: u32::from(seat.table()), key };
                return Err(denial(place, cause, None, word.epoch()));
            }
        }
        Ok(())
    }

    /// Whether a *cut* stands in the pass's lineage: what severs answers already flowing.
    #[must_use]
    pub fn is_cut(&self, pass: &Pass) -> bool {
        let named = pass.named.iter().filter_map(|seat| Some(self.named_gate(seat.cell)?.word()));
        let keys = pass.keys.iter().flatten();
        let keys = keys.filter_map(|seat| Some(self.key_word(seat)?.1));
        named.chain(keys).any(Word::is_cut)
    }

    /// A key's cell and word as they stand now; `None` if it has no cell.
    fn key_word(&self, seat: &KeySeat) -> Option<(u32, Word)> {
        let table = self.table(usize::from(seat.table()))?;
        // Out of range where the key had no cell.
        if let Some(word) = owned_word(table, count(seat.cell()), seat.key) {
            return Some((seat.cell(), word));
        }
        // A cell may change hands again while we look: twice is bad luck, more is not believed.
        for _ in 0..4 {
            let cell = table.find(seat.key)?;
            if let Some(word) = owned_word(table, cell, seat.key) {
                return Some((u32::try_from(cell).ok()?, word));
            }
        }
        None
    }
}

/// The word of a cell, if it is that key's: before the look, and after.
fn owned_word(table: &Table, cell: usize, key: KeyHash) -> Option<Word> {
    if table.tag(cell)? != key {
        return None;
    }
    let word = table.word(cell)?;
    (word.is_armed() || table.tag(cell)? == key).then_some(word)
}
