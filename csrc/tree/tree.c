#include "tree/tree.h"

#include <string.h>

#include "base/memory.h"

ice_tree *ice_tree_new(void) {
    ice_tree *t = ice_alloc(1, sizeof *t);
    if (!t) return NULL;
    memset(t, 0, sizeof *t);
    t->owned.owners = 1;
    return t;
}

ice_tree *ice_tree_share(ice_tree *t) {
    atomic_fetch_add(&t->owned.owners, 1);
    return t;
}

void ice_tree_free(ice_tree *t) {
    if (!t || !ice_owned_release(&t->owned)) return;
    ice_tree_free(t->base);
    ice_free(t);
}
