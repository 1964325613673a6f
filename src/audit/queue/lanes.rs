//! The queued records: changes before requests, with room for each kind.

use std::collections::VecDeque;

use futures_channel::oneshot;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::{AuditEvent, AuditRecord};

/// Tells whoever waits for a record what became of it.
pub(crate) type Ack = oneshot::Sender<Result<(), DeliveryError>>;

/// So many changes a writer takes that is full of requests.
const CHANGES_WITHOUT_ROOM: usize = 16;

/// Whose room a record takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Change,
    Request,
    Refusal,
}

impl Kind {
    pub(super) fn of(record: &AuditRecord) -> Self {
        match &record.event {
            AuditEvent::Change(_) => Self::Change,
            AuditEvent::Request(request) if request.outcome.is_refusal() => Self::Refusal,
            AuditEvent::Request(_) => Self::Request,
        }
    }
}

/// The room for records of one kind, queued or in the writer's hands.
pub(super) struct Room<P> {
    capacity: usize,
    occupied: usize,
    /// Who waits for a place, in that order.
    pub(super) waiting: VecDeque<oneshot::Sender<P>>,
}

impl<P> Room<P> {
    fn of(capacity: usize) -> Self {
        Self { capacity, occupied: 0, waiting: VecDeque::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.occupied >= self.capacity
    }

    /// Whether there is room for which nobody waits: who came first is served first.
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

/// What is queued, and what room is left. `P` is a place that somebody may wait for.
pub(super) struct Lanes<P> {
    changes: VecDeque<(AuditRecord, Option<Ack>)>,
    /// Of admitted requests and of refusals.
    requests: VecDeque<(AuditRecord, Option<Ack>)>,
    for_changes: Room<P>,
    for_requests: Room<P>,
    for_refusals: Room<P>,
    /// How many requests and changes the records stand for.
    count: u64,
    /// How many of the queued records somebody waits for.
    awaited: usize,
    reserved: usize,
}

impl<P> Lanes<P> {
    pub(super) fn of(capacity: usize) -> Self {
        Self {
            changes: VecDeque::new(),
            requests: VecDeque::new(),
            for_changes: Room::of(capacity),
            for_requests: Room::of(capacity),
            for_refusals: Room::of(capacity.div_ceil(4)),
            count: 0,
            awaited: 0,
            reserved: 0,
        }
    }

    pub(super) fn room(&mut self, kind: Kind) -> &mut Room<P> {
        match kind {
            Kind::Change => &mut self.for_changes,
            Kind::Request => &mut self.for_requests,
            Kind::Refusal => &mut self.for_refusals,
        }
    }

    /// How many records are queued.
    pub(super) fn len(&self) -> usize {
        self.changes.len() + self.requests.len()
    }

    /// How many records are queued or in the writer's hands.
    pub(super) fn occupied(&self) -> usize {
        self.for_changes.occupied + self.for_requests.occupied + self.for_refusals.occupied
    }

    /// How many requests and changes these stand for.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether a place is out that is not filled yet.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved > 0
    }

    /// Whether somebody waits for a record, or for room.
    pub(super) fn is_pressing(&self) -> bool {
        let mut waiting = self.for_changes.waiting.iter().chain(&self.for_requests.waiting);
        self.awaited > 0 || waiting.any(|waiter| !waiter.is_canceled())
    }

    /// Counts a place that is given out.
    ///
    /// Requests under way take no room: there are as many as the host lets in, and one
    /// that never ends must not keep others waiting. The record of a refusal follows at
    /// once, and takes it beforehand.
    pub(super) fn reserve(&mut self, kind: Kind) {
        self.reserved += 1;
        if kind == Kind::Refusal {
            self.for_refusals.occupied += 1;
        }
    }

    /// Counts a place that is filled or not needed.
    pub(super) fn give_back(&mut self, kind: Kind) {
        self.reserved = self.reserved.saturating_sub(1);
        if kind == Kind::Refusal {
            self.for_refusals.vacate();
        }
    }

    /// Queues a record. Says whether the writer, which wants so many for a batch, is to
    /// be told.
    pub(super) fn push(&mut self, record: AuditRecord, ack: Option<Ack>, batch: usize) -> bool {
        let kind = Kind::of(&record);
        self.count += record.count();
        self.room(kind).occupied += 1;
        self.awaited += usize::from(ack.is_some());
        let first_awaited = ack.is_some() && self.awaited == 1;
        let lane = if kind == Kind::Change { &mut self.changes } else { &mut self.requests };
        lane.push_back((record, ack));
        self.len() == 1 || first_awaited || self.len() == batch
    }

    /// Moves up to `max` records over to the writer: changes first, though no more than
    /// half of them where requests wait too, and the oldest of each. A writer that cannot
    /// get rid of requests and has no room still gets a few changes.
    pub(super) fn take(&mut self, max: usize, mut each: impl FnMut(AuditRecord, Option<Ack>)) {
        let half = max.div_ceil(2).max(max.saturating_sub(self.requests.len()));
        let half = if max == 0 { CHANGES_WITHOUT_ROOM } else { half };
        let changes = self.changes.len().min(half);
        let requests = self.requests.len().min(max.saturating_sub(changes));
        let taken = self.changes.drain(..changes).chain(self.requests.drain(..requests));
        for (record, ack) in taken {
            self.awaited = self.awaited.saturating_sub(usize::from(ack.is_some()));
            each(record, ack);
        }
    }

    /// The writer is done with a record.
    pub(super) fn release(&mut self, record: &AuditRecord) {
        self.count = self.count.saturating_sub(record.count());
        self.room(Kind::of(record)).vacate();
    }
}
