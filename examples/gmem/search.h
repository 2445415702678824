/* What searching and timing it share. */
#ifndef SEARCH_H
#define SEARCH_H

#include "session.h"

/* The bank of --rerank, for the caller to close; NULL without. */
outcome open_rerank(session *s, gmem_bank **out, gmem_error *error);

#endif /* SEARCH_H */
