//! What an entry of the ring stands for, and the future of one that completes once.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::io::ring::core::Core;

/// What waits for a completion; the number of the entry in the table of these is the `user_data`.
pub(super) enum Op {
    /// Somebody waits. `held` is what the kernel uses meanwhile: memory, the file.
    Waiting {
        waker: Option<Waker>,
        held: Box<dyn Any>,
    },
    /// Nobody waits any more; the kernel is not finished with `_held`.
    Abandoned { _held: Box<dyn Any> },
    /// The result, not yet fetched.
    Done(i32),
    /// The poll of the set of sockets.
    Sockets,
}

/// The result of one entry: what the system call returns, negative numbers are errors.
pub(super) struct Completion {
    core: Rc<Core>,
    key: Option<usize>,
}

impl Completion {
    pub fn new(core: Rc<Core>, key: usize) -> Self {
        Self {
            core,
            key: Some(key),
        }
    }
}

impl Future for Completion {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        let Some(key) = self.key else {
            panic!("polled after its end");
        };
        let mut ops = self.core.ops.borrow_mut();
        match &mut ops[key] {
            Op::Waiting { waker, .. } => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            Op::Done(result) => {
                let result = *result;
                ops.remove(key);
                drop(ops);
                self.key = None;
                Poll::Ready(result)
            }
            Op::Abandoned { .. } | Op::Sockets => panic!("an entry of somebody else"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut ops = self.core.ops.borrow_mut();
        match std::mem::replace(&mut ops[key], Op::Done(0)) {
            Op::Waiting { held, .. } => ops[key] = Op::Abandoned { _held: held },
            _ => {
                ops.remove(key);
            }
        }
    }
}
