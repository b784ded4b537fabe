//! Where the cluster's desired state lies: a small key-value store with etcd's semantics.
//!
//! One revision for the whole store, raised by each transaction that changes something; compare-and-swap transactions
//! of at most [`OPS_MAX`] operations; a watch by prefix from a revision. [`embedded::Embedded`] keeps it in one file
//! of this process; [`memory::Memory`] keeps it nowhere, for tests and simulation. Leases are left out: with one
//! scheduler nothing needs one.
//!
//! Keys: `/apps/<app>`, `/templates/<app>/<service>/<generation>`, `/nodes/<id>`, `/replicas/<id>`,
//! `/pins/<app>/<service>/<number>`, `/volumes/<app>_<volume>` (to be deleted), `/alloc/…` (numbers handed out),
//! `/tokens/<hash>`, `/events/<sequence>`. Values are JSON.

pub mod embedded;
pub mod memory;

use std::path::PathBuf;
use std::time::Duration;

/// Operations (conditions not counted) in one transaction; etcd's default limit.
pub const OPS_MAX: usize = 128;
/// Bytes of one value; below etcd's default limit of a request.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Transactions whose changes a watch can still be given.
pub const HISTORY_MAX: u64 = 10_000;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision that made it.
    pub created: u64,
    /// Revision that last changed it.
    pub modified: u64,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// The key was last changed by this revision.
    Unchanged {
        /// The key.
        key: String,
        /// The revision.
        modified: u64,
    },
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Remove a key; no error when it is not there.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// A transaction: all or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Carried out together, each key at most once.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carried out and durable; the store's revision now.
    Done(u64),
    /// A condition did not hold; nothing changed.
    Refused,
}

/// One change, as a watch sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision that made it.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// Its new value; `None` when it was removed.
    pub value: Option<Vec<u8>>,
}

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("cannot open the store {}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// Another process has the file.
    #[error("the store {} is in use by another process", file.display())]
    InUse {
        /// The file.
        file: PathBuf,
    },
    /// Reading or writing failed.
    #[error("cannot {operation} the store {}", file.display())]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A record is not what it should be.
    #[error("record {key} of the store is damaged: {why}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A transaction is over a limit.
    #[error("transaction refused: {0}")]
    Limit(String),
    /// A watch asks for what is no longer kept.
    #[error("changes since revision {from} are no longer kept, only those since {oldest}")]
    Compacted {
        /// Asked for.
        from: u64,
        /// Still there.
        oldest: u64,
    },
}

impl StoreError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { .. } => Some("another `gantry server` runs with this --data-dir; stop it first".to_owned()),
            Self::Damaged { .. } => Some("restore the data directory from a backup".to_owned()),
            Self::Open { .. } => {
                Some("check that the data directory is there, writable, and on a local disk".to_owned())
            }
            Self::Io { .. } => Some("check the disk: full or failing".to_owned()),
            Self::Limit(_) => None,
            Self::Compacted { .. } => Some("read everything anew, then watch from the revision read".to_owned()),
        }
    }
}

/// etcd's semantics, as far as the scheduler needs them.
pub trait Store: Send + Sync {
    /// Revision of the last transaction that changed something; 0 at first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn revision(&self) -> Result<u64, StoreError>;

    /// One key.
    ///
    /// # Errors
    /// The store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All keys that begin with `prefix`, in order, and the revision they were read at.
    ///
    /// # Errors
    /// The store cannot be read.
    fn range(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError>;

    /// Carries out a transaction; it is durable when this returns.
    ///
    /// # Errors
    /// It is over a limit, or the store cannot be written; then nothing was changed.
    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError>;

    /// Changes of keys under `prefix` with revisions after `after`, in order; waits up to `timeout` for the first.
    ///
    /// # Errors
    /// They are no longer kept, or the store cannot be read.
    fn changes(&self, prefix: &str, after: u64, timeout: Duration) -> Result<Vec<Change>, StoreError>;
}

/// What every store refuses alike.
fn check(transaction: &Transaction) -> Result<(), StoreError> {
    if transaction.ops.len() > OPS_MAX {
        return Err(StoreError::Limit(format!("{} operations, at most {OPS_MAX}", transaction.ops.len())));
    }
    let mut keys: Vec<&str> = transaction.ops.iter().map(Op::key).collect();
    keys.sort_unstable();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(StoreError::Limit(format!("key {} twice", pair[0])));
    }
    for op in &transaction.ops {
        if let Op::Put { key, value } = op
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(StoreError::Limit(format!(
                "value of {key} is {} bytes, at most {VALUE_BYTES_MAX}",
                value.len()
            )));
        }
    }
    Ok(())
}

/// The first key behind all that begin with `prefix`; `None` when there is none.
fn end_of(prefix: &str) -> Option<String> {
    // Our keys are ASCII: one more in the last byte is the next string.
    let (head, last) = prefix.split_at_checked(prefix.len().checked_sub(1)?)?;
    let next = char::from_u32(u32::from(last.bytes().next()?) + 1).filter(char::is_ascii)?;
    Some(format!("{head}{next}"))
}

#[cfg(test)]
mod tests {
    use super::embedded::Embedded;
    use super::memory::Memory;
    use super::*;

    fn put(key: &str, value: &str) -> Op {
        Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
    }

    fn delete(key: &str) -> Op {
        Op::Delete { key: key.to_owned() }
    }

    fn commit(store: &dyn Store, ops: Vec<Op>) -> Outcome {
        store.commit(&Transaction { conditions: Vec::new(), ops }).unwrap()
    }

    /// Every conformance test against every store.
    fn each(test: fn(&dyn Store)) {
        test(&Memory::default());
        let dir = tempfile::tempdir().unwrap();
        test(&Embedded::open(&dir.path().join("store.redb")).unwrap());
    }

    #[test]
    fn revisions_rise_only_with_changes() {
        each(|store| {
            assert_eq!(store.revision().unwrap(), 0);
            assert_eq!(commit(store, vec![put("/a/1", "x")]), Outcome::Done(1));
            assert_eq!(commit(store, vec![put("/a/2", "y"), put("/b", "z")]), Outcome::Done(2));
            assert_eq!(commit(store, vec![]), Outcome::Done(2));
            assert_eq!(commit(store, vec![delete("/none")]), Outcome::Done(2));
            assert_eq!(commit(store, vec![put("/a/1", "w")]), Outcome::Done(3));
            let entry = store.get("/a/1").unwrap().unwrap();
            assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"w"[..], 1, 3));
            assert_eq!(store.get("/a").unwrap(), None);
        });
    }

    #[test]
    fn a_range_is_a_prefix_in_order() {
        each(|store| {
            commit(store, vec![put("/a/2", ""), put("/a/1", ""), put("/a", ""), put("/ab", ""), put("/b/1", "")]);
            let keys = |prefix: &str| {
                let (revision, entries) = store.range(prefix).unwrap();
                assert_eq!(revision, 1);
                entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
            };
            assert_eq!(keys("/a/"), ["/a/1", "/a/2"]);
            assert_eq!(keys("/a"), ["/a", "/a/1", "/a/2", "/ab"]);
            assert_eq!(keys(""), ["/a", "/a/1", "/a/2", "/ab", "/b/1"]);
            assert_eq!(keys("/c"), [""; 0]);
        });
    }

    #[test]
    fn a_transaction_is_all_or_nothing() {
        each(|store| {
            commit(store, vec![put("/x", "1")]);
            for (why, condition, done) in [
                ("absent, but there", Condition::Absent("/x".to_owned()), false),
                ("changed since", Condition::Unchanged { key: "/x".to_owned(), modified: 9 }, false),
                ("not there at all", Condition::Unchanged { key: "/z".to_owned(), modified: 1 }, false),
                ("absent", Condition::Absent("/z".to_owned()), true),
                ("unchanged", Condition::Unchanged { key: "/x".to_owned(), modified: 1 }, true),
            ] {
                let before = store.revision().unwrap();
                let ops = vec![put("/y", why), put("/y2", why)];
                let outcome = store.commit(&Transaction { conditions: vec![condition], ops }).unwrap();
                assert_eq!(matches!(outcome, Outcome::Done(_)), done, "{why}");
                assert_eq!(store.revision().unwrap() > before, done, "{why}");
                let seen = store.get("/y").unwrap().is_some_and(|entry| entry.value == why.as_bytes());
                assert_eq!(seen, done, "{why}");
            }
        });
    }

    #[test]
    fn limits_are_errors_that_change_nothing() {
        each(|store| {
            let many = (0..=OPS_MAX).map(|n| put(&format!("/{n}"), "")).collect();
            let large = vec![Op::Put { key: "/l".to_owned(), value: vec![0; VALUE_BYTES_MAX + 1] }];
            for ops in [many, large, vec![put("/d", "1"), delete("/d")]] {
                let refused = store.commit(&Transaction { conditions: Vec::new(), ops });
                assert!(matches!(refused, Err(StoreError::Limit(_))), "{refused:?}");
            }
            assert_eq!(store.revision().unwrap(), 0);
        });
    }

    #[test]
    fn a_watch_sees_every_change_once_in_order() {
        each(|store| {
            commit(store, vec![put("/a/1", "x"), put("/b", "x")]);
            commit(store, vec![delete("/a/1"), put("/a/2", "y")]);
            let short = Duration::from_millis(1);
            let text = |after| {
                let changes = store.changes("/a/", after, short).unwrap();
                changes.iter().map(|c| format!("{} {} {}", c.revision, c.key, c.value.is_some())).collect::<Vec<_>>()
            };
            assert_eq!(text(0), ["1 /a/1 true", "2 /a/1 false", "2 /a/2 true"]);
            assert_eq!(text(1), ["2 /a/1 false", "2 /a/2 true"]);
            assert_eq!(text(2), [""; 0]);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| store.changes("/a/", 2, Duration::from_secs(20)).unwrap());
                commit(store, vec![put("/c", "")]);
                commit(store, vec![put("/a/3", "")]);
                assert_eq!(waiter.join().unwrap()[0].key, "/a/3");
            });
        });
    }

    #[test]
    fn an_embedded_store_is_there_again_and_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.redb");
        let store = Embedded::open(&file).unwrap();
        commit(&store, vec![put("/a", "1")]);
        assert!(matches!(Embedded::open(&file), Err(StoreError::InUse { .. })));
        drop(store);
        let store = Embedded::open(&file).unwrap();
        assert_eq!(store.get("/a").unwrap().unwrap().value, b"1");
        assert_eq!(store.revision().unwrap(), 1);
        assert_eq!(store.changes("/", 0, Duration::ZERO).unwrap().len(), 1);
        std::fs::write(dir.path().join("bad.redb"), b"not a store").unwrap();
        assert!(matches!(Embedded::open(&dir.path().join("bad.redb")), Err(StoreError::Open { .. })));
    }
}
