/* How strongly a layer's noise raises the loss: the slope of the measured increases over t², which the
 * linearity theorem says is one number a layer. Pure arithmetic.
 *
 * Source: arXiv 2411.17525, Algorithm 3. */
#ifndef DECANT_STAGES_NOISE_REGRESSION_H
#define DECANT_STAGES_NOISE_REGRESSION_H

enum { DECANT_NOISE_LEVELS_MAXIMUM = 16 };

/* Sizes of noise where increases are in proportion to t²: evenly from the relative error of the best grid of 5
 * bits for the Gaussian to that of 3 bits, t² = 0.0025 to 0.03454 (Lloyd–Max quantizers of 32 and 8 levels); a
 * single level is the largest.  t [levels] ascending; filled */
void decant_noise_levels(int levels, double *t);

/* Least squares through the origin: Σ increase · t² / Σ t⁴. May be negative. */
double decant_noise_slope(const double *increase, const double *t, int levels);

/* Pearson's correlation of two lists; 0 when one of them does not vary or count < 2. */
double decant_correlation(const double *x, const double *y, int count);

#endif
