/* Preloaded, it makes fsync of a folder fail, as on file systems that cannot do it: old CIFS, vboxsf, many FUSE.
   FOLDER_FSYNC_ERRNO is the number of the error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

int fsync(int descriptor) {
  struct stat status;
  const char *number = getenv("FOLDER_FSYNC_ERRNO");
  if (number && !fstat(descriptor, &status) && S_ISDIR(status.st_mode)) {
    errno = atoi(number);
    return -1;
  }
  int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
  return real(descriptor);
}
