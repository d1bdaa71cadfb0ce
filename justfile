# `just` alone lists these. Each is one line that can also be typed.

_default:
    @just --list --unsorted

# Everything a change must pass: format, lints, documentation, dependencies, tests
check:
    tests/run

# The tests alone: `just test crash` runs those with crash in their name
test *ARGS:
    tests/run {{ if ARGS == "" { "--locked" } else { ARGS } }}

# Power cuts and failing disks, for minutes and with another seed each time
power-cuts:
    POSTGATE_CRASH_STEPS=50000 POSTGATE_CRASH_ROUNDS=1500 POSTGATE_CRASH_SEED=$(date +%s) cargo test --test crash -- --nocapture

# Postgate beside Postfix and others, in turn: `just bench --help` (docs/benchmarks.md)
bench *ARGS:
    cargo bench --bench relay -- {{ ARGS }}

# The functions every message passes, alone
bench-hot *ARGS:
    cargo bench --bench hot -- {{ ARGS }}

# Where the time of a running Postgate goes: WHAT is "syscalls" or "cpu"
profile WHAT PID SECONDS="5":
    benches/profile {{ WHAT }} {{ PID }} {{ SECONDS }}

# A spool of a million messages: memory, time to open, disk (docs/benchmarks.md)
bench-spool:
    cargo bench --bench spool

# Kill the real process under load, 200 times (`just test crash` does it 10 times)
crash-long KILLS="200":
    POSTGATE_KILLS={{ KILLS }} tests/run every_message_acknowledged_under_load

# Try it: listens on loopback:2525, files what it gets under ./var
quickstart:
    cargo run --release -- -c config/quickstart.toml run

# The documentation of the code
doc:
    cargo doc --no-deps --document-private-items --open

# Fuzz one of command, session, data, address, spool (needs cargo-fuzz); `just test` runs their corpora
fuzz TARGET SECONDS="60":
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{ TARGET }} -- -max_total_time={{ SECONDS }}

# Known vulnerabilities in the dependencies (needs the network and cargo-deny)
advisories:
    cargo deny check advisories

# Rewrites what rustfmt would
fmt:
    cargo fmt
