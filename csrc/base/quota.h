/* The CPU time that control groups grant. */
#ifndef ICE_QUOTA_H
#define ICE_QUOTA_H

/* CPUs' worth of time that the process's control groups grant, rounded up; 0: there is no quota.  Looks again when what
 * it knows is a second old. */
int ice_cpu_quota(void);

/* The same as the files under `root` have it, "" for the system's own: the least quota from the process's group up to
 * where the groups are mounted, of version 2 and of version 1. */
int ice_read_cpu_quota(const char *root);

#endif
