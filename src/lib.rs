//! Postgate.
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod event;
pub mod mail;
pub mod policy;
pub mod secret;
pub mod server;
pub mod smtp;
pub mod spool;
pub mod telemetry;
pub mod upstream;
