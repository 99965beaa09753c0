//! What was seen on a connection lately, few of a kind.

/// Kinds that take turns on a connection.
const KNOWN_MAX: usize = 4;
/// So many times nothing is learnt after what was learnt in vain.
const PAUSE_MAX: u32 = 256;

/// The last shapes of something, to be compared with what comes. Learning one costs as much as it saves a few times:
/// where no shape comes again, it is tried less and less often.
#[derive(Debug)]
pub struct Recent<S> {
    known: Vec<S>,
    /// Which one goes next.
    oldest: usize,
    /// So many times nothing is learnt.
    pause_left: u32,
    /// Doubles with each one that is learnt, halves with each one that is found.
    pause: u32,
}

impl<S> Default for Recent<S> {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            oldest: 0,
            pause_left: 0,
            pause: 0,
        }
    }
}

impl<S> Recent<S> {
    /// What the first one says that says something.
    #[inline]
    pub fn find<'s, T>(&'s mut self, says: impl FnMut(&'s S) -> Option<T>) -> Option<T> {
        let found = self.known.iter().find_map(says);
        if found.is_some() {
            self.pause /= 2;
            self.pause_left = self.pause_left.min(self.pause);
        }
        found
    }

    /// After [`Recent::find`] has found nothing: keeps what is made in the place of the oldest, unless so much was learnt in
    /// vain that this one is left out.
    pub fn learn(&mut self, make: impl FnOnce() -> Option<S>) {
        if self.pause_left > 0 {
            self.pause_left -= 1;
        } else if let Some(new) = make() {
            if self.known.len() < KNOWN_MAX {
                self.known.push(new);
            } else {
                self.known[self.oldest] = new;
                self.oldest = (self.oldest + 1) % KNOWN_MAX;
            }
            self.pause = (2 * self.pause + 1).min(PAUSE_MAX);
            self.pause_left = self.pause / KNOWN_MAX as u32;
        }
    }

    /// All of them.
    pub fn known(&self) -> &[S] {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each one was known; what was not is learnt.
    fn known(recent: &mut Recent<u32>, numbers: impl IntoIterator<Item = u32>) -> Vec<bool> {
        let mut seen = |number| {
            let is_known = recent
                .find(|&known| (known == number).then_some(()))
                .is_some();
            if !is_known {
                recent.learn(|| Some(number));
            }
            is_known
        };
        numbers.into_iter().map(&mut seen).collect()
    }

    #[test]
    fn few_that_take_turns_are_known() {
        let mut recent = Recent::default();
        let turns = known(&mut recent, (0..10).flat_map(|_| [1, 2, 3]));
        assert!(turns[9..].iter().all(|&is_known| is_known), "{turns:?}");
    }

    #[test]
    fn what_never_comes_again_is_learnt_more_and_more_rarely_until_something_comes_again() {
        let mut recent = Recent::default();
        let mut learnt = 0;
        for number in 0..10_000 {
            known(&mut recent, [number]);
            learnt += u32::from(recent.known().contains(&number));
            if number == 1_000 {
                assert!((4..60).contains(&learnt), "{learnt} of 1,000");
            }
        }
        assert!((100..300).contains(&learnt), "{learnt} of 10,000");
        assert_eq!(recent.known().len(), KNOWN_MAX);
        // One that stays is known again before long.
        let stays = known(&mut recent, std::iter::repeat_n(77_777, 200));
        assert!(stays[100..].iter().all(|&is_known| is_known));
        // And what is new beside it is learnt at once.
        assert_eq!(known(&mut recent, [88_888, 88_888]), [false, true]);
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut recent = Recent::default();
        let all = 0..2 * KNOWN_MAX as u32;
        for number in all.clone() {
            // Found often enough that the next one is learnt.
            known(&mut recent, [number; 20]);
        }
        let mut left = recent.known().to_vec();
        left.sort_unstable();
        assert!(left.iter().copied().eq(all.skip(KNOWN_MAX)), "{left:?}");
    }
}
