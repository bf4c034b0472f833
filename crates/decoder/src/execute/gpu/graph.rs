//! Decoding by CUDA graphs: all launches of a token on a device, recorded once and replayed. What
//! changes from token to token (ids, positions, cache addresses) lies in memory that the graph
//! reads; what does not is in the [`GraphKey`].

use super::Stage;
use super::pass::{StagePass, Work};
use crate::error::Result;
use llm_int8_cuda::Graph;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

/// Rows up to which a decode pass runs as a graph.
const GRAPH_ROWS: usize = 64;
/// Graphs that a stage keeps. When one more is needed, all are dropped.
const MOST_GRAPHS: usize = 64;

/// Everything that is fixed when a graph is recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GraphKey {
    embeds: bool,
    first_block: usize,
    end_block: usize,
    computes_head: bool,
    rows: usize,
    /// CUDA blocks that share the positions of one row in attention.
    splits: usize,
}

/// How far the recording of a graph has come.
#[derive(Debug)]
pub(super) enum GraphState {
    /// The work ran once as single launches, which loaded the kernels it needs.
    Launched,
    /// Recorded: every further pass replays it.
    Recorded(Graph),
    /// The driver refused to record it; the work stays single launches.
    Refused,
}

pub(super) type Graphs = BTreeMap<GraphKey, GraphState>;

impl Stage {
    /// Graphs recorded so far, including those that were dropped again.
    pub(crate) fn graph_count(&self) -> usize {
        self.recorded.load(Ordering::Relaxed)
    }

    /// Drops all graphs: the addresses they were recorded with are about to change.
    pub(super) fn forget_graphs(&self) {
        self.lock_graphs().clear();
    }

    fn lock_graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StagePass<'_> {
    /// Whether this pass may run as a graph: a decode pass of few rows.
    pub(super) fn fits_graph(&self) -> bool {
        self.stage.uses_graphs && self.is_decode && self.count <= GRAPH_ROWS
    }

    /// Does the work by its graph: the first time as single launches, the second time recorded,
    /// from then on replayed.
    pub(super) fn run_graph(&self, work: &Work) -> Result<()> {
        let key = GraphKey {
            embeds: work.embeds,
            first_block: work.blocks.start,
            end_block: work.blocks.end,
            computes_head: work.computes_head,
            rows: self.count,
            splits: self.splits,
        };

        let mut graphs = self.stage.lock_graphs();
        if graphs.len() >= MOST_GRAPHS && !graphs.contains_key(&key) {
            graphs.clear();
        }

        let next = match graphs.remove(&key) {
            None => {
                self.launch(work)?;
                GraphState::Launched
            }
            Some(GraphState::Launched) => self.record_and_launch(work)?,
            Some(GraphState::Recorded(graph)) => {
                graph.launch()?;
                GraphState::Recorded(graph)
            }
            Some(GraphState::Refused) => {
                self.launch(work)?;
                GraphState::Refused
            }
        };
        graphs.insert(key, next);
        Ok(())
    }

    fn record_and_launch(&self, work: &Work) -> Result<GraphState> {
        match self.record(work) {
            Ok(graph) => {
                self.stage.recorded.fetch_add(1, Ordering::Relaxed);
                graph.launch()?;
                Ok(GraphState::Recorded(graph))
            }
            Err(error) => {
                log::warn!(
                    "{}: single launches instead of a graph: {error}",
                    self.stage.device.name()
                );
                self.launch(work)?;
                Ok(GraphState::Refused)
            }
        }
    }

    /// Records the work. Where the driver cannot capture early starts (programmatic dependent
    /// launch), the graph is recorded without them.
    fn record(&self, work: &Work) -> Result<Graph> {
        let device = &self.stage.device;
        match device.record(|| self.launch(work)) {
            Err(error) if device.overlaps_kernels() => {
                log::warn!("{}: a graph without early starts: {error}", device.name());
                device.without_overlap(|| device.record(|| self.launch(work)))
            }
            recorded => recorded,
        }
    }
}
