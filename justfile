# What CI runs, and what a developer runs alone. `tests/run` needs none of this.
#
# The recipes of `ci` are lines that a shell runs as they stand: `.ci/run` does that where there is no just.

[private]
default:
    @just --list --unsorted

# Everything that must pass before a change is merged; .ci/run installs what is missing first
ci: fmt lint docs deny test

# Is everything formatted? (`cargo fmt --all` does it)
fmt:
    cargo fmt --all --check

# Clippy, warnings denied
lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# The documentation of every item, warnings denied
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --locked

# Licences, bans and sources of all crates, and known vulnerabilities where their database can be had
deny:
    .ci/deny

# Every test; installs what they need
test:
    tests/run

# The end-to-end tests whose names hold a word
e2e word="":
    cargo build --workspace --locked
    cargo test --locked -p kontrol-tests --test e2e -- {{word}}

# Everything breaks at once, for so many seconds, and is judged; KONTROL_CHAOS_KIND=Deaf has one kind of fault
storm seconds="600" seed="1":
    cargo build --workspace --locked
    KONTROL_CHAOS_SECONDS={{seconds}} KONTROL_CHAOS_SEED={{seed}} cargo test --locked -p kontrol-tests --test robustness storm -- --nocapture

# Every parser that meets the outside, each on so many inputs (tests/fuzz/README.md); the tests replay what was found
fuzz inputs="1000000" *targets="":
    tests/fuzz/run {{inputs}} {{targets}}

# Measures masters that run: simulated pods report to them (`just load --help`)
load *flags:
    cargo run --release --locked -p kontrol-tests --bin load -- {{flags}}
