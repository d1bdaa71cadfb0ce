//! A mailbox is kept octet for octet and stays within its brackets.
#![no_main]

#[path = "../../tests/support/driver.rs"]
mod driver;
#[path = "../../tests/support/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| properties::address(octets));
