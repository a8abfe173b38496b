//! Days that once broke a promise, made small, each with what was wrong.
