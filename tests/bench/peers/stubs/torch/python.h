/* Empty: see torch/all.h of this folder. */
