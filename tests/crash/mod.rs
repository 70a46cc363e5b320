//! What survives `kill -9`, and what a damaged log does.

mod damage;
mod rounds;
mod writers;
