//! How many octets of bodies may be in memory at once, over all drafts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SpoolError;

/// The octets that are left.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<AtomicU64>);

/// Octets that one draft holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    octets: u64,
}

impl Budget {
    /// A budget of so many octets.
    pub(super) fn new(octets: u64) -> Self {
        Self(Arc::new(AtomicU64::new(octets)))
    }

    /// Holds nothing yet.
    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), octets: 0 }
    }
}

impl Held {
    /// Takes `n` octets more, or [`SpoolError::Busy`].
    pub(super) fn grow(&mut self, n: u64) -> Result<(), SpoolError> {
        let left = &self.budget.0;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n))
            .map_err(|_| SpoolError::Busy)?;
        self.octets += n;
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn release(&mut self) {
        self.budget.0.fetch_add(std::mem::take(&mut self.octets), Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_to_the_last_octet_and_comes_back() {
        let budget = Budget::new(10);
        let (mut a, mut b) = (budget.hold(), budget.hold());
        a.grow(9).unwrap();
        assert!(matches!(b.grow(2), Err(SpoolError::Busy)));
        b.grow(1).unwrap();
        assert!(matches!(a.grow(1), Err(SpoolError::Busy)));
        drop(a);
        b.grow(9).unwrap();
        assert!(b.grow(1).is_err());
    }
}
