//! Waiting for a condition with a deadline; nothing else waits in these tests, and nothing waits without one.

use crate::error::LoadError;
use std::time::{Duration, Instant};

/// Polls `done` every `step` until it answers `Some`, or `limit` has passed.
///
/// # Errors
/// [`LoadError::Late`] with `what` when the limit has passed; whatever `done` fails with.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    step: Duration,
    mut done: impl FnMut() -> Result<Option<T>, LoadError>,
) -> Result<T, LoadError> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(LoadError::Late(format!("{what} ({} s)", limit.as_secs())));
        }
        // Parking is the pause between two looks; a spurious wake-up only means an earlier look.
        std::thread::park_timeout(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: it looks at least once, returns the value, and gives up with the name of what did not come.
    #[test]
    fn it_ends_with_the_value_or_with_a_name() {
        let none = Duration::ZERO;
        let mut looks = 0;
        let value = until("three", Duration::MAX, none, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);
        let late = until::<()>("the end of days", none, none, || Ok(None));
        assert!(late.unwrap_err().to_string().contains("the end of days"));
    }
}
