//! The queued records, with separate room for refusals.

use std::collections::VecDeque;

use futures_channel::oneshot;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::{AuditEvent, AuditRecord};

/// Reports the result of a record to the caller that waits for it.
pub(crate) type Ack = oneshot::Sender<Result<(), DeliveryError>>;

/// Which room a record takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Refusal,
    Other,
}

impl Kind {
    pub(super) fn of(record: &AuditRecord) -> Self {
        match &record.event {
            AuditEvent::Request(request) if request.outcome.is_refusal() => Self::Refusal,
            AuditEvent::Request(_) | AuditEvent::Change(_) => Self::Other,
        }
    }
}

/// The room for records of one kind, queued or held by the writer.
pub(super) struct Room<P> {
    capacity: usize,
    occupied: usize,
    /// The callers that wait for a place, in order of arrival.
    pub(super) waiting: VecDeque<oneshot::Sender<P>>,
}

impl<P> Room<P> {
    fn of(capacity: usize) -> Self {
        Self { capacity, occupied: 0, waiting: VecDeque::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.occupied >= self.capacity
    }

    /// Whether there is room and no caller waits for it: first come, first served.
    pub(super) fn is_free(&mut self) -> bool {
        while self.waiting.front().is_some_and(oneshot::Sender::is_canceled) {
            self.waiting.pop_front();
        }
        self.waiting.is_empty() && !self.is_full()
    }

    fn vacate(&mut self) {
        self.occupied = self.occupied.saturating_sub(1);
    }
}

/// The queued records and the remaining room. `P` is a place that a caller may wait for.
pub(super) struct Contents<P> {
    records: VecDeque<(AuditRecord, Option<Ack>)>,
    for_refusals: Room<P>,
    for_others: Room<P>,
    /// The number of requests or changes that the records stand for.
    count: u64,
    /// The number of queued records that a caller waits for.
    awaited: usize,
}

impl<P> Contents<P> {
    pub(super) fn of(capacity: usize) -> Self {
        Self {
            records: VecDeque::new(),
            for_refusals: Room::of(capacity.div_ceil(4)),
            for_others: Room::of(capacity),
            count: 0,
            awaited: 0,
        }
    }

    pub(super) fn room(&mut self, kind: Kind) -> &mut Room<P> {
        match kind {
            Kind::Refusal => &mut self.for_refusals,
            Kind::Other => &mut self.for_others,
        }
    }

    /// The number of queued records.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The number of records queued or held by the writer.
    pub(super) fn occupied(&self) -> usize {
        self.for_refusals.occupied + self.for_others.occupied
    }

    /// The number of requests or changes that these stand for.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether a caller waits for a record or for room.
    pub(super) fn is_pressing(&self) -> bool {
        self.awaited > 0 || self.for_others.waiting.iter().any(|waiter| !waiter.is_canceled())
    }

    /// Takes the room of a reserved place.
    ///
    /// Requests in progress take no room: the host limits their number, and one that never
    /// ends must not make others wait. The record of a refusal follows at once, so it takes
    /// its room in advance.
    pub(super) fn reserve(&mut self, kind: Kind) {
        if kind == Kind::Refusal {
            self.for_refusals.occupied += 1;
        }
    }

    /// Frees the room of a place that was filled or is not needed.
    pub(super) fn give_back(&mut self, kind: Kind) {
        if kind == Kind::Refusal {
            self.for_refusals.vacate();
        }
    }

    /// Queues a record. Returns whether to wake the writer, which wants `batch` records.
    pub(super) fn push(&mut self, record: AuditRecord, ack: Option<Ack>, batch: usize) -> bool {
        let kind = Kind::of(&record);
        self.count += record.count();
        self.room(kind).occupied += 1;
        self.awaited += usize::from(ack.is_some());
        let first_awaited = ack.is_some() && self.awaited == 1;
        self.records.push_back((record, ack));
        self.len() == 1 || first_awaited || self.len() == batch
    }

    /// Moves up to `max` records to the writer, oldest first.
    pub(super) fn take(&mut self, max: usize, mut each: impl FnMut(AuditRecord, Option<Ack>)) {
        for (record, ack) in self.records.drain(..max.min(self.records.len())) {
            self.awaited = self.awaited.saturating_sub(usize::from(ack.is_some()));
            each(record, ack);
        }
    }

    /// Frees the place of a record that the writer has finished.
    pub(super) fn release(&mut self, record: &AuditRecord) {
        self.count = self.count.saturating_sub(record.count());
        self.room(Kind::of(record)).vacate();
    }
}
