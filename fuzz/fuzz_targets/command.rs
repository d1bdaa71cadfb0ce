//! Whatever a command line is taken for, it means the same when said again.
#![no_main]

#[path = "../../tests/support/driver.rs"]
mod driver;
#[path = "../../tests/support/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| properties::command(octets));
