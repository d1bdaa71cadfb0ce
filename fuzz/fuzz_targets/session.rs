//! A session is the same however its input is cut, answers in well-formed lines, and is bounded.
#![no_main]

#[path = "../../tests/support/driver.rs"]
mod driver;
#[path = "../../tests/support/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| properties::session(octets));
