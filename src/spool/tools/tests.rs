//! The tools on real directories.
