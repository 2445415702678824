/* How OpenMP's threads wait for each other. */
#ifndef WAITING_H
#define WAITING_H

/* Call first thing in main. May start the program again, with the same arguments. */
void wait_briefly(char **argv);

#endif /* WAITING_H */
