/* The frame in which rows are compared: scale (x - centre).  Without it a common offset would drown the differences
 * between rows, and squares of tiny or huge numbers would leave the range of float32.  It is found from up to 512 rows,
 * and outliers among them change little. */
#ifndef ICE_FRAME_H
#define ICE_FRAME_H

#include "cluster/rows.h"

/* The mean of rows whose largest component is at most 16 times the median of these.  work: 2 dim doubles. */
void ice_frame_centre(const ice_rows *rows, double *work, float *centre);
/* A power of two that brings the largest |x - centre| of a typical row near 1, within a factor of 2^16: typical is the
 * geometric mean, over the rows that differ from the centre.  Where none does, of magnitudes instead; 1 where all are
 * 0.  Scales are 2^32 apart, so that like data have the same one.  centre: NULL for 0.  row: dim floats. */
float ice_frame_scale(const ice_rows *rows, const float *centre, float *row);

#endif
