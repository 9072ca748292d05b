#include "tree/tree.h"

#include "base/memory.h"

ice_tree *ice_tree_new(void) { return ice_owned_new(sizeof(ice_tree)); }

ice_tree *ice_tree_share(ice_tree *t) {
    atomic_fetch_add(&t->owned.owners, 1);
    return t;
}

void ice_tree_free(ice_tree *t) {
    if (!t || !ice_owned_release(&t->owned)) return;
    ice_tree_free(t->base);
    ice_free(t);
}
