#include "select/top_k.h"

/* Hoare's selection with the middle element as pivot: sorted and constant lists are as fast as random ones. */
float ice_kth_largest(float *numbers, int64_t count, int64_t k) {
    int64_t low = 0, high = count - 1, wanted = k - 1;
    while (low < high) {
        float pivot = numbers[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (numbers[i] > pivot) i++;
            while (numbers[j] < pivot) j--;
            if (i <= j) {
                float swapped = numbers[i];
                numbers[i++] = numbers[j];
                numbers[j--] = swapped;
            }
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else break;
    }
    return numbers[wanted];
}
