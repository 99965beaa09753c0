//! What a copy of a log may lack of what was acknowledged, as looking at it has shown.
//!
//! The store finds it, `ha` tells the controller, and the controller elects accordingly. It is a number on the wire.

/// The later one is the worse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Nothing.
    #[default]
    None,
    /// It ends with a batch that is not whole. Nearly always that is what a crash has torn and nobody was answered for; it may
    /// be one that was acknowledged and is damaged.
    Torn,
    /// Acknowledged bytes cannot be read, or were wiped and are not fetched again yet.
    Damaged,
}

impl Doubt {
    /// From its number on the wire. What a newer version says is the worst.
    pub fn from_number(number: i64) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Torn,
            _ => Self::Damaged,
        }
    }

    /// Its number on the wire.
    pub fn number(self) -> i64 {
        self as i64
    }
}
