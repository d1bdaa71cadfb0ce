//! Any life of the spool, with power cuts and failing calls, keeps its promises.
#![no_main]

#[path = "../../tests/support/machine.rs"]
mod machine;
#[path = "../../tests/support/spool.rs"]
mod spool;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| spool::property(octets));
