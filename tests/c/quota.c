/* The CPU quota of control groups, from files as systems have them. */
#include "base/quota.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static char root[64];

/* Writes a file under the root, with the folders that it needs. */
static void put(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        mkdir(path, 0700);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    EXPECT(file && fputs(text, file) >= 0);
    if (file) fclose(file);
}

static void begin(const char *mounts, const char *groups) {
    strcpy(root, "/tmp/icecore_quota_XXXXXX");
    EXPECT(mkdtemp(root));
    put("/proc/self/mountinfo", mounts);
    put("/proc/self/cgroup", groups);
}

static void end(int expected) {
    char command[128];
    EXPECT(ice_read_cpu_quota(root) == expected);
    snprintf(command, sizeof command, "rm -r '%s'", root);
    EXPECT(system(command) == 0);
}

static const char version_2[] = "22 1 0:21 / /proc rw - proc proc rw\n"
                                "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

static void none(void) {
    begin("", "");
    end(0);
    strcpy(root, "/nowhere");
    EXPECT(ice_read_cpu_quota(root) == 0);
    begin(version_2, "0::/user.slice/session\n");
    put("/sys/fs/cgroup/user.slice/session/cpu.max", "max 100000\n");
    end(0);
}

static void at_the_root(void) {
    begin(version_2, "0::/\n");
    put("/sys/fs/cgroup/cpu.max", "150000 100000\n"); /* a container's own namespace; rounded up */
    end(2);
}

static void nested(void) {
    begin(version_2, "0::/system.slice/job.service/step\n");
    put("/sys/fs/cgroup/system.slice/job.service/step/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/system.slice/job.service/cpu.max", "300000 100000\n");
    put("/sys/fs/cgroup/system.slice/cpu.max", "800000 100000\n");
    end(3);
}

static const char version_1[] = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
                                "34 30 0:31 %s /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
                                "35 30 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";

static void first_version(void) {
    char mounts[512];
    snprintf(mounts, sizeof mounts, version_1, "/");
    begin(mounts, "3:cpuset:/other\n2:cpu,cpuacct:/slurm/job\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us", "50000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_quota_us", "700000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_period_us", "100000\n");
    end(2);
}

/* A container sees its own group where the groups are mounted, under the name that it has outside. */
static void in_a_container(void) {
    char mounts[512];
    snprintf(mounts, sizeof mounts, version_1, "/docker/4711");
    begin(mounts, "2:cpu,cpuacct:/docker/4711\n0::/docker/4711\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    end(4);
}

void quota_tests(void) {
    check_run("quota: none", none);
    check_run("quota: of the group where groups are mounted", at_the_root);
    check_run("quota: the least one from the process's group up", nested);
    check_run("quota: of the first version of control groups", first_version);
    check_run("quota: in a container", in_a_container);
}
