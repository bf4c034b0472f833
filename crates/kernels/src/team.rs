//! A thread pool for work that takes microseconds.
//!
//! A token passes through hundreds of matmuls, each of which takes two threads some tens to
//! hundreds of microseconds. A pool whose threads sleep in between (rayon's do, after spinning
//! briefly) has to wake them again and again: on 2 cores of a virtual machine that was 7 % of a
//! token, for gpt2-large as for SmolLM2-135M. So the threads of this pool spin for a fraction of a
//! millisecond before they sleep. There is one team, as large as rayon's global pool; a caller that
//! finds it busy uses rayon instead.
//!
//! Everything in a forward pass that uses several threads runs on the team. If part of it ran on
//! rayon, the team's threads would spin beside rayon's on the same cores: that was a tenth of a
//! batch of 32. Rayon is for loading and checking, where a task takes milliseconds.

#![expect(
    unsafe_code,
    reason = "lends a closure to threads that outlive it, and items to several threads"
)]

use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, SeqCst, Thread, spin, thread, wait};
use rayon::prelude::*;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, PoisonError, TryLockError};

/// Calls `f` for every item, on all threads of the team. Each thread starts with a contiguous share
/// of the items and takes them in order, so that it reads memory in order, and then helps the
/// others. `S` is scratch memory that a thread reuses from item to item.
///
/// ```
/// let mut numbers = [1, 2, 3, 4];
/// llm_int8_kernels::team::for_each(numbers.iter_mut().collect(), |_: &mut (), number| *number *= 2);
/// assert_eq!(numbers, [2, 4, 6, 8]);
/// ```
///
/// # Panics
/// If `f` panics. Items that nobody has taken by then are leaked.
pub fn for_each<T: Send, S: Default>(items: Vec<T>, f: impl Fn(&mut S, T) + Sync) {
    let items = Items::new(items);
    for_each_number(items.0.len(), |memory: &mut S, i| {
        // SAFETY: every number comes once.
        f(memory, unsafe { items.take(i) })
    });
}

/// [`for_each`] for the numbers below `count`.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// llm_int8_kernels::team::for_each_number(5, |_: &mut (), i| {
///     sum.fetch_add(i, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 10);
/// ```
///
/// # Panics
/// If `f` panics.
pub fn for_each_number<S: Default>(count: usize, f: impl Fn(&mut S, usize) + Sync) {
    let team = match count {
        0 | 1 => None,
        _ => Team::get(),
    };

    // Without a free team: rayon, or this thread alone.
    let Some((team, busy)) = team.and_then(|team| Some((team, team.begin()?))) else {
        if count > 1 && rayon::current_num_threads() > 1 {
            return (0..count)
                .into_par_iter()
                .for_each_init(S::default, |memory, i| f(memory, i));
        }

        let mut memory = S::default();
        return (0..count).for_each(|i| f(&mut memory, i));
    };

    team.for_each_number(&busy, count, f);
}

/// Items that several threads take one by one. Those that nobody takes, because of a panic, are
/// leaked.
struct Items<T>(Vec<UnsafeCell<MaybeUninit<T>>>);

// SAFETY: each item is taken by one thread, as if it had been sent there (`Items::take`).
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    fn new(items: Vec<T>) -> Self {
        let cell = |item| UnsafeCell::new(MaybeUninit::new(item));
        Self(items.into_iter().map(cell).collect())
    }

    /// # Safety
    /// Item `i` has not been taken yet, nor is another thread taking it.
    unsafe fn take(&self, i: usize) -> T {
        // SAFETY: every item was initialised, and the caller guarantees that this one is still there
        // and that no other thread has access to it.
        unsafe { (*self.0[i].get()).assume_init_read() }
    }
}

/// [`for_each`] for the chunks of `data`, each with its number; the last may be shorter than `size`.
///
/// ```
/// let mut numbers = [0; 5];
/// llm_int8_kernels::team::for_each_chunk(&mut numbers, 2, |_: &mut (), i, chunk| chunk.fill(i));
/// assert_eq!(numbers, [0, 0, 1, 1, 2]);
/// ```
///
/// # Panics
/// If `f` panics.
pub fn for_each_chunk<T: Send, S: Default>(
    data: &mut [T],
    size: usize,
    f: impl Fn(&mut S, usize, &mut [T]) + Sync,
) {
    let chunks = data.chunks_mut(size.max(1)).enumerate().collect();
    for_each(chunks, |memory, (i, chunk)| f(memory, i, chunk));
}

/// The helper threads. The caller of [`for_each`] is a member too, number 0.
pub(crate) struct Team {
    /// Held by the caller whose work is running.
    pub(crate) busy: Mutex<()>,
    pub(crate) helpers: Vec<Thread>,
    pub(crate) shared: &'static Shared,
}

/// The state that helpers and the caller share.
///
/// All of it is sequentially consistent, because it is needed twice: of two threads that each write
/// one value and then read the other's, one must see what the other wrote. They are `is_open` and
/// `inside`, lest the caller returns while a helper calls its closure, and `epoch` and `asleep`,
/// lest a helper sleeps through the work. With a weaker write the model checker (`loom/`) fails.
pub(crate) struct Shared {
    /// Incremented with every piece of work.
    pub(crate) epoch: AtomicUsize,
    /// The current work, if any.
    work: Mutex<Option<Work>>,
    /// Whether helpers may still join the work.
    is_open: AtomicBool,
    /// Helpers that are running the work or checking whether they may.
    inside: AtomicUsize,
    /// Helpers that are parked, or about to be.
    asleep: AtomicUsize,
    /// Whether a helper panicked in the current work.
    has_panicked: AtomicBool,
    /// The next number of each member's share, in [`Team::for_each_number`].
    next: Vec<OwnLines<AtomicUsize>>,
}

/// A value with cache lines of its own: two, because some CPUs fetch lines in pairs.
#[repr(align(128))]
struct OwnLines<T>(T);

/// A borrowed closure of the calling thread, with its lifetime erased; see [`Team::run`].
#[derive(Clone, Copy)]
struct Work(&'static (dyn Fn(usize) + Sync));

/// The epoch at which helpers end. No program counts that far; models of the team end with it.
pub(crate) const LAST_EPOCH: usize = usize::MAX;

impl Team {
    /// The team, if rayon's current pool has as many threads.
    fn get() -> Option<&'static Self> {
        static TEAM: OnceLock<Option<Team>> = OnceLock::new();
        let team = TEAM
            .get_or_init(|| Self::new(rayon::current_num_threads() - 1))
            .as_ref()?;
        (team.helpers.len() + 1 == rayon::current_num_threads()).then_some(team)
    }

    /// A team with this many helpers; `None` if a thread cannot be started.
    pub(crate) fn new(helpers: usize) -> Option<Self> {
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            epoch: AtomicUsize::new(0),
            work: Mutex::new(None),
            is_open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
            next: (0..=helpers)
                .map(|_| OwnLines(AtomicUsize::new(0)))
                .collect(),
        }));

        let helper = |member| {
            let thread = thread::Builder::new().name(format!("llm-int8 {member}"));
            thread
                .spawn(move || shared.help(member))
                .ok()
                .map(|handle| handle.thread().clone())
        };

        let helpers = (1..=helpers).map(helper).collect::<Option<Vec<_>>>()?;
        Some(Self {
            busy: Mutex::new(()),
            helpers,
            shared,
        })
    }

    /// The right to use the team, unless another caller has it. Work that panicked leaves nothing
    /// broken: it has ended on all threads.
    fn begin(&self) -> Option<MutexGuard<'_, ()>> {
        match self.busy.try_lock() {
            Ok(busy) => Some(busy),
            Err(TryLockError::Poisoned(busy)) => Some(busy.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// See [`for_each_number`].
    pub(crate) fn for_each_number<S: Default>(
        &self,
        busy: &MutexGuard<'_, ()>,
        count: usize,
        f: impl Fn(&mut S, usize) + Sync,
    ) {
        // Each member starts at its share of the numbers.
        let next = &self.shared.next;
        let members = next.len();
        let share = count.div_ceil(members);
        for (member, next) in next.iter().enumerate() {
            next.0.store(member * share, SeqCst);
        }

        let work = |member: usize| {
            let mut memory = S::default();
            for part in (member..members).chain(0..member) {
                let end = count.min((part + 1) * share);
                loop {
                    let i = next[part].0.fetch_add(1, SeqCst);
                    if i >= end {
                        break;
                    }
                    f(&mut memory, i);
                }
            }
        };

        self.run(busy, &work);
    }

    /// Calls `work` with the number of each member that joins in; the caller, member 0, always
    /// does. A helper may call it twice. Returns when no member is inside `work` any more.
    pub(crate) fn run(&self, _busy: &MutexGuard<'_, ()>, work: &(dyn Fn(usize) + Sync)) {
        let shared = self.shared;

        // SAFETY: helpers call the closure only between their `inside += 1`, after which they see
        // `is_open`, and their `inside -= 1`. Dropping `Closing` closes the work and waits until
        // `inside` is 0 before this function returns or unwinds, so the closure is alive whenever
        // it is called.
        let lent = Work(unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work)
        });
        *shared.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(lent);
        // It is still set if in the work before this one the caller panicked as well.
        shared.has_panicked.store(false, SeqCst);
        shared.is_open.store(true, SeqCst);
        let closing = Closing(shared);
        shared.epoch.fetch_add(1, SeqCst);

        if shared.asleep.load(SeqCst) > 0 {
            self.helpers.iter().for_each(Thread::unpark);
        }
        work(0);
        drop(closing);
        assert!(
            !shared.has_panicked.load(SeqCst),
            "a helper thread panicked"
        );
    }
}

/// Ends a piece of work when dropped: lets no more helpers in and waits for those inside.
struct Closing(&'static Shared);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.is_open.store(false, SeqCst);
        wait(|| self.0.inside.load(SeqCst) == 0);
        *self.0.work.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Shared {
    /// The main loop of a helper.
    fn help(&self, member: usize) {
        let mut seen = 0;
        while seen != LAST_EPOCH {
            seen = self.next_epoch(seen);
            self.inside.fetch_add(1, SeqCst);
            if self.is_open.load(SeqCst) {
                let work = *self.work.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Work(work)) = work
                    && catch_unwind(AssertUnwindSafe(|| work(member))).is_err()
                {
                    self.has_panicked.store(true, SeqCst);
                }
            }

            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Spins, then sleeps, until the epoch differs from the one last `seen`.
    fn next_epoch(&self, seen: usize) -> usize {
        loop {
            let changed = || Some(self.epoch.load(SeqCst)).filter(|epoch| *epoch != seen);
            if let Some(epoch) = spin(changed) {
                return epoch;
            }

            self.asleep.fetch_add(1, SeqCst);

            // A caller that changes the epoch after this load sees `asleep > 0` and unparks.
            if self.epoch.load(SeqCst) == seen {
                thread::park();
            }
            self.asleep.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::SPIN_TIME;
    use std::sync::Arc;

    #[test]
    fn every_item_is_visited_once() {
        for round in 0..2000 {
            let mut counts = vec![0u32; round % 37];
            for_each(counts.iter_mut().collect(), |memory: &mut u32, count| {
                *memory += 1;
                *count += 1;
            });

            assert!(counts.iter().all(|count| *count == 1), "{round}");

            if round % 500 == 0 {
                thread::sleep(SPIN_TIME * 3); // Long enough for the helpers to park.
            }
        }
    }

    #[test]
    fn items_are_dropped_once_or_leaked_by_a_panic() {
        let count = Arc::new(());
        for_each(vec![count.clone(); 40], |_: &mut (), item| drop(item));
        assert_eq!(Arc::strong_count(&count), 1);

        let failed = catch_unwind(|| {
            let items = (0..40).map(|i| (i, count.clone())).collect();
            for_each(items, |_: &mut (), (i, _item)| assert!(i != 33, "expected"))
        });
        assert!(failed.is_err() && (1..40).contains(&Arc::strong_count(&count)));
    }

    #[test]
    fn concurrent_callers_do_not_interfere() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let mut numbers = [1u64; 50];
                        for_each(numbers.iter_mut().collect(), |_: &mut (), number| {
                            *number += 1
                        });
                        assert_eq!(numbers.iter().sum::<u64>(), 100);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_still_works() {
        for _ in 0..20 {
            let failed = catch_unwind(|| {
                for_each((0..40).collect(), |_: &mut (), i| {
                    assert!(i != 33, "expected")
                })
            });

            assert!(failed.is_err());
        }

        let mut numbers = [0; 9];
        for_each(numbers.iter_mut().collect(), |_: &mut (), number| {
            *number = 1
        });
        assert_eq!(numbers, [1; 9]);
    }

    #[test]
    fn a_panic_of_every_member_is_forgotten_with_the_work() {
        let team = Team::new(1).unwrap();
        let busy = team.busy.lock().unwrap();
        let both_are_in = std::sync::Barrier::new(2);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            team.run(&busy, &|_| {
                both_are_in.wait();
                panic!("expected")
            });
        }));
        assert!(failed.is_err());
        team.run(&busy, &|_| {});
    }

    #[test]
    fn the_team_and_not_rayon_works_on_after_panics_of_all_members() {
        let is_member = || {
            let name = thread::current().name().unwrap_or_default().to_owned();
            name.starts_with("llm-int8 ")
        };
        let failed = catch_unwind(|| for_each(vec![(); 40], |_: &mut (), ()| panic!("expected")));
        assert!(failed.is_err());

        // Other tests may have the team for a moment.
        let has_helped = (0..500).any(|_| {
            let mut helped = [false; 8];
            for_each(helped.iter_mut().collect(), |_: &mut (), helped| {
                thread::sleep(std::time::Duration::from_millis(1));
                *helped = is_member();
            });
            helped.contains(&true)
        });
        assert_eq!(has_helped, rayon::current_num_threads() > 1);
    }
}
