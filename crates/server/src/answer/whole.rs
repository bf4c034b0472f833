//! An answer in one piece.

use super::{Choice, Head, Style, Submission};
use crate::reply::{ApiError, ApiResult};
use serde_json::Value;

/// Waits until all sequences have ended. Dropping the future, as happens when the client goes,
/// cancels them.
///
/// # Errors
/// Those of [`Choice::take`].
pub(crate) async fn collect(
    head: &Head,
    style: &impl Style,
    mut choices: Vec<Choice>,
    mut submission: Submission,
) -> ApiResult<Value> {
    while choices.iter().any(|choice| !choice.has_ended()) {
        let Some((index, update)) = submission.updates.recv().await else {
            return Err(ApiError::internal("the engine's thread has ended"));
        };
        let Some(choice) = choices.get_mut(index) else {
            continue;
        };
        let was_open = !choice.has_ended();
        choice.take(update, submission.began, &head.metrics)?;
        if let Some(handle) = submission
            .handles
            .get(index)
            .filter(|_| choice.has_ended() && was_open)
        {
            // It may have ended by its first call.
            handle.cancel();
        }
    }

    Ok(Value::Object(style.whole(head, &choices)))
}
