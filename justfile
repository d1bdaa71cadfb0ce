# `just` alone lists these. Each is one line that can also be typed.

_default:
    @just --list --unsorted

# Everything a change must pass: format, lints, documentation, dependencies, tests
check:
    tests/run

# The tests alone: `just test crash` runs those with crash in their name
test *ARGS:
    tests/run {{ if ARGS == "" { "--locked" } else { ARGS } }}

# Try it: listens on loopback:2525, files what it gets under ./var
quickstart:
    cargo run --release -- -c config/quickstart.toml run

# The documentation of the code
doc:
    cargo doc --no-deps --document-private-items --open

# Known vulnerabilities in the dependencies (needs the network and cargo-deny)
advisories:
    cargo deny check advisories

# Rewrites what rustfmt would
fmt:
    cargo fmt
