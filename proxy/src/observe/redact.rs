//! What must never be told: keys and the like, taken out of everything that is logged or shown.
