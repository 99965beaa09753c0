//! One table entry per key: its name, type, default, bounds, unit and explanation, and the field that it fills.
//!
//! The macro [`settings`] makes the struct and its table from one list, so that what `ringmq config explain` says and what
//! the layers read cannot differ.

use crate::base::config::value::Bounds;

/// What is known of a key that means something here.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub key: &'static str,
    /// Lines of explanation, as they stand on the field.
    pub docs: &'static [&'static str],
    pub bounds: Bounds,
    /// Unit of the value, or an empty text.
    pub unit: &'static str,
    /// How a default that depends on the machine or the role is found.
    pub found: Option<&'static str>,
}

impl Setting {
    /// The explanation as one paragraph.
    pub fn doc(&self) -> String {
        let lines: Vec<_> = self.docs.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }
}

/// Makes a struct of settings with its defaults, its table and access by key.
macro_rules! settings {
    (
        $(#[$struct_doc:meta])*
        $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:literal $field:ident: $type:ty = $default:expr, $bounds:expr, $unit:literal $(, found $found:literal)?;
            )+
        }
    ) => {
        $(#[$struct_doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ #[doc = concat!("\n\nKey `", $key, "`.")] pub $field: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default ),+ }
            }
        }

        impl $name {
            /// The keys of this group.
            pub const SETTINGS: &[$crate::base::config::setting::Setting] = &[
                $( $crate::base::config::setting::Setting {
                    key: $key,
                    docs: &[$($doc),+],
                    bounds: $bounds,
                    unit: $unit,
                    found: $crate::base::config::setting::found!($($found)?),
                } ),+
            ];

            /// Sets a key of this group from its text. `None`: not a key of this group.
            /// `Ok(Some(..))` is a warning, `Err` what would have been understood.
            pub fn set(&mut self, key: &str, text: &str) -> Option<Result<Option<String>, String>> {
                match key {
                    $( $key => {
                        let taken = <$type as $crate::base::config::value::Value>::parse(text, $bounds);
                        Some(taken.map(|taken| {
                            self.$field = taken.value;
                            taken.warning
                        }))
                    } )+
                    _ => None,
                }
            }

            /// The text of a key of this group.
            pub fn get(&self, key: &str) -> Option<String> {
                match key {
                    $( $key => Some($crate::base::config::value::Value::render(&self.$field)), )+
                    _ => None,
                }
            }
        }
    };
}

macro_rules! found {
    () => {
        None
    };
    ($found:literal) => {
        Some($found)
    };
}

pub(in crate::base::config) use {found, settings};
