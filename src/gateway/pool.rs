use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Most bytes one read copies; also the most a direction holds in memory when its reader is slow.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes a pipe may hold. The system may grant less.
const PIPE_BYTES: usize = 1024 * 1024;
/// Pipes in use on one serving thread; over it, directions go on copying.
const PIPES_MAX: usize = 64;
/// Chunks and pipes kept for reuse.
const SPARE_CHUNKS: usize = 64;
const SPARE_PIPES: usize = 4;

/// A pipe whose pages pass from one socket to the next. Empty while it is in the pool.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
}

/// What one serving thread lends to its connections.
struct Pool {
    scratch: Box<[u8]>,
    chunks: Vec<Box<[u8]>>,
    pipes: Vec<Pipe>,
    pipes_lent: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool {
        scratch: vec![0; CHUNK_BYTES].into(),
        chunks: Vec::new(),
        pipes: Vec::new(),
        pipes_lent: 0,
    });
}

/// Runs `read_and_write` with this thread's scratch buffer. It must not call back into the pool.
pub(super) fn with_scratch<R>(read_and_write: impl FnOnce(&mut [u8]) -> R) -> R {
    POOL.with_borrow_mut(|pool| read_and_write(&mut pool.scratch))
}

/// Takes the scratch buffer away with what the last [`with_scratch`] left in it.
pub(super) fn take_scratch() -> Box<[u8]> {
    POOL.with_borrow_mut(|pool| {
        let spare = pool.chunks.pop().unwrap_or_else(|| vec![0; CHUNK_BYTES].into());
        std::mem::replace(&mut pool.scratch, spare)
    })
}

/// A chunk to read into.
pub(super) fn take_chunk() -> Box<[u8]> {
    POOL.with_borrow_mut(|pool| pool.chunks.pop().unwrap_or_else(|| vec![0; CHUNK_BYTES].into()))
}

/// Takes a chunk back.
pub(super) fn put_chunk(chunk: Box<[u8]>) {
    POOL.with_borrow_mut(|pool| {
        if pool.chunks.len() < SPARE_CHUNKS {
            pool.chunks.push(chunk);
        }
    });
}

/// An empty pipe; none when too many are in use or descriptors are short, which is no error: copying works too.
pub(super) fn take_pipe() -> Option<Pipe> {
    POOL.with_borrow_mut(|pool| {
        if pool.pipes_lent >= PIPES_MAX {
            return None;
        }
        let pipe = pool.pipes.pop().or_else(new_pipe)?;
        pool.pipes_lent += 1;
        Some(pipe)
    })
}

fn new_pipe() -> Option<Pipe> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // Refused when the user has many pipes already; a smaller one is slower and no less right.
    let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
    Some(Pipe { reader, writer })
}

/// Takes an empty pipe back.
pub(super) fn put_pipe(pipe: Pipe) {
    // Nothing to give back to once the thread is ending.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        pool.pipes_lent -= 1;
        if pool.pipes.len() < SPARE_PIPES {
            pool.pipes.push(pipe);
        }
    });
}

/// Forgets a pipe that still holds bytes: it cannot be lent again.
pub(super) fn drop_pipe(pipe: Pipe) {
    let _ = POOL.try_with(|pool| pool.borrow_mut().pipes_lent -= 1);
    drop(pipe);
}

/// The longest splice.
pub(super) const SPLICE_BYTES: usize = PIPE_BYTES;
